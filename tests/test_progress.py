"""What a backward calls final is final: the counter that other threads read while a pass runs.

A pass is ended behind each of its stages in turn. The blocks that are counted then must have their whole gradient, and
keep it to the end, though that vector still lends room to activations of earlier blocks; and no block is counted later
than it could be.
"""

import dataclasses
import threading

import numpy as np
import pytest
from checks import same_bits
from option_cases import LAYER_SCALES, OPTIONS, problem

import cvit
from cvit import Drop, ViT, ViTConfig
from cvit.engine.plan import Progress

NAMES = [
    *LAYER_SCALES, "norm before the blocks", "norms before the blocks, depth 0", "patch norm", "norm of q and k",
    "norm in the MLP", "post", "parallel, gated, layer scale", "parallel, inner norms", "pairs", "mixed",
    "norms' own epsilons", "two heads", "none", "DINOv2", "EVA-02", "DeiT III, pairs", "xp parallel", "PE", "RoPE-ViT",
]  # fmt: skip
LONG = dict(image_size=(20, 18))  # 90 patches: a block goes in stages, never as a whole
CONFIG = ViTConfig(image_size=(12, 8), patch_size=4, width=24, depth=4, heads=3, hidden=300, classes=5, layer_scale=0.3)


def check_every_stage(model, x, y, first=None, drop=None):
    """End the pass behind each stage; the gradient is full of NaN before."""
    config, call = model.config, dict(first=first, drop=drop)
    blocks = 0 if first == "head" else config.depth - (first or 0)
    pieces = model.layout.pieces(first)[:blocks]
    _, whole = model.loss_and_grad(x, y, **call)
    engine = [engine for (_, mode, *_), engine in model._engines.items() if mode == "train"][-1]  # the last one used
    counts, found = [0], np.full_like(whole, np.nan)
    for stages in range(1, len(engine.stages()) + 1):
        engine.most_stages = stages
        before, found, progress = found, np.full_like(whole, np.nan), Progress()
        model.loss_and_grad(x, y, out=found, progress=progress, **call)
        counts.append(progress())
        assert counts[-1] >= counts[-2]
        for piece in pieces[: counts[-1]]:
            assert same_bits(found[piece], whole[piece]), (stages, counts[-1])
        for piece in pieces[counts[-2] : counts[-1]]:
            assert not same_bits(before[piece], whole[piece]), "was final a stage earlier"
    engine.most_stages = None
    assert sorted(set(counts)) == list(range(blocks + 1))


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_block_consists_of(name):
    """Short images in whole blocks and, with more threads than even shares, in stages."""
    config, weights, x, y = problem(OPTIONS[name], N=5, dtype=np.float32)
    for threads in (1, 3):
        cvit.set_num_threads(threads)
        check_every_stage(ViT(config, weights), x, y)
    check_every_stage(ViT(config, weights, checkpoint="block"), x, y)
    check_every_stage(ViT(config, weights), x, y, first=min(1, config.depth))


@pytest.mark.parametrize("name", ["layer scale", "pairs", "PE", "RoPE-ViT"])
@pytest.mark.parametrize("checkpoint", [None, "block"])
def test_long_images(name, checkpoint, dtype):
    config, weights, x, y = problem({**OPTIONS[name], **LONG}, N=2, dtype=dtype)
    check_every_stage(ViT(config, weights, checkpoint=checkpoint), x, y)


@pytest.mark.parametrize("layer_scale", [None, 0.3])
@pytest.mark.parametrize("checkpoint", [None, "block"])
@pytest.mark.parametrize("first", [None, 0, 2, 4, "head"])
def test_frozen_fronts_and_lent_room(layer_scale, checkpoint, first):
    config = dataclasses.replace(CONFIG, layer_scale=layer_scale)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 3, 12, 8)).astype(np.float32), rng.integers(5, size=4)
    model = ViT(config, seed=1, checkpoint=checkpoint)
    assert model.plan(4, first=first).lent or first in (4, "head") or checkpoint
    for threads in (1, 3):
        cvit.set_num_threads(threads)
        check_every_stage(model, x, y, first=first)
        if first != "head":
            check_every_stage(model, x, y, first=first, drop=Drop(path=0.3, rate=0.1, seed=1))


def test_bfloat16():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 3, 12, 8)).astype(np.float32), rng.integers(5, size=4)
    check_every_stage(ViT(CONFIG, seed=1, precision="bf16"), x, y)


def test_a_thread_sees_it_while_the_pass_runs():
    """The pass does not hold the GIL. How often the watching thread gets a core is the system's affair: try again."""
    config = ViTConfig(image_size=32, patch_size=4, width=192, depth=6, heads=3, hidden=768, classes=5)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 3, 32, 32)).astype(np.float32), rng.integers(5, size=8)
    model, seen = ViT(config, seed=1), set()
    _, whole = model.loss_and_grad(x, y)
    pieces = model.layout.pieces()
    for _ in range(50):
        grad, progress, copies = np.full_like(whole, np.nan), Progress(), {}
        run = threading.Thread(target=model.loss_and_grad, args=(x, y), kwargs=dict(out=grad, progress=progress))
        run.start()
        while run.is_alive():
            for number in range(len(copies), progress()):
                copies[number] = grad[pieces[number]].copy()
                seen.add(number)
        run.join()
        assert same_bits(grad, whole)
        assert all(same_bits(copy, whole[pieces[number]]) for number, copy in copies.items())
        if len(seen) == config.depth:
            break
    assert len(seen) > 1


def test_an_accumulating_call_counts_nothing():
    """Its gradient is added to `out` when the pass is over."""
    model, x, y = ViT(CONFIG, seed=1), np.ones((2, 3, 12, 8), np.float32), [0, 1]
    total, progress = np.zeros(model.layout.size, np.float32), Progress()
    model.loss_and_grad(x, y, out=total, accumulate=True, progress=progress)
    assert progress() == 0
    model.loss_and_grad(x, y, out=total, progress=progress)
    assert progress() == CONFIG.depth
