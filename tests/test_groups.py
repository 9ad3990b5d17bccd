"""Trained parts, layer-wise learning rates and freezing: against torch.optim's and timm's parameter groups."""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest
from checks import on_all_threads, peer, same_bits

from cvit.engine import update
from cvit.model.config import ViTConfig
from cvit.model.layout import Layout
from cvit.model.vit import ViT
from cvit.train.freezing import freezing
from cvit.train.groups import groups, matching
from cvit.train.optim import SGD, AdamW

CONFIG = ViTConfig(image_size=8, patch_size=4, channels=1, width=6, depth=3, heads=2, hidden=10, classes=3)
LAYOUT = Layout.of(CONFIG)
WIDE = Layout.of(ViTConfig(image_size=8, patch_size=4, channels=1, width=128, depth=2, heads=2, classes=3))
RTOL = {np.float32: 2e-5, np.float64: 1e-12}
NAMES = list(LAYOUT.entries)
CHOICES = {
    "all": None,
    "head": ("head.*",),
    "biases": ("*.bias",),
    "two runs": ("blocks.0.*", "blocks.2.mlp.*", "head.weight"),
    "a function": lambda name: "attn" in name,
    "names": frozenset(["cls_token", "blocks.1.norm2.weight"]),
}
OPTIMIZERS = {
    "sgd": (SGD, dict(momentum=0.9, nesterov=True, weight_decay=0.1)),
    "sgd without state": (SGD, dict(weight_decay=0.1)),
    "adamw": (AdamW, dict(weight_decay=0.3)),
}


def drawn(dtype, steps, layout=LAYOUT):
    rng = np.random.default_rng(3)
    return rng.normal(size=layout.size).astype(dtype), rng.normal(size=(steps, layout.size)).astype(dtype)


def names_of(choice):
    if choice is None:
        return set(NAMES)
    return {name for name in NAMES if choice(name)} if callable(choice) else set(matching("trained", LAYOUT, choice))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("make, options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_parameter_groups_of_torch(make, options, choice, dtype):
    """A group for each tensor, with its learning rate and weight decay; clipping counts the trained ones."""
    torch = peer("torch")
    w, grads = drawn(dtype, 5)
    before, trained = w.copy(), names_of(choice)
    tensors = {name: torch.from_numpy(w[_slice(name)].copy()).requires_grad_() for name in NAMES if name in trained}
    factors = {name: 0.7 ** (CONFIG.depth + 1 - LAYOUT.entries[name].row.layer) for name in NAMES}
    theirs = getattr(torch.optim, make.__name__)(
        [
            dict(params=[t], lr=0.05 * factors[n], weight_decay=options["weight_decay"] * LAYOUT.entries[n].decay)
            for n, t in tensors.items()
        ],
        **options, lr=0.05,
    )  # fmt: skip
    ours = make(LAYOUT, 0.05, dtype=dtype, layer_decay=0.7, trained=choice, **options)
    for grad in grads:
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(grad[_slice(name)].copy())
        norm = torch.linalg.vector_norm(torch.cat([tensor.grad.flatten().double() for tensor in tensors.values()]))
        for tensor in tensors.values():
            tensor.grad *= min(1.0, 1.5 / float(norm))
        theirs.step()
        poisoned = np.full_like(grad, np.nan)  # what is not trained is not read
        for name in trained:
            poisoned[_slice(name)] = grad[_slice(name)]
        assert ours.step(w, poisoned, clip_norm=1.5) == pytest.approx(float(norm), rel=1e-6)
    for name in NAMES:
        if name in trained:
            found = tensors[name].detach().numpy()
            np.testing.assert_allclose(w[_slice(name)], found, rtol=RTOL[dtype], atol=RTOL[dtype], err_msg=name)
        else:
            assert same_bits(w[_slice(name)], before[_slice(name)])


def _slice(name):
    entry = LAYOUT.entries[name]
    return slice(entry.offset, entry.offset + entry.size)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_factors_of_timm(pool):
    """Of every parameter, by its name in timm, where q, k and v are one.

    timm counts a norm before the pooling with the last block; BEiT's code, the rule's source, with the head.
    """
    peer("timm")
    from timm.models.vision_transformer import VisionTransformer
    from timm.optim._param_groups import param_groups_layer_decay

    theirs = VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, embed_dim=6, depth=3, num_heads=2, num_classes=3,
        global_pool="avg" if pool == "mean" else "token",
    )  # fmt: skip
    scales = {
        id(parameter): (group["lr_scale"], group["weight_decay"] > 0)
        for group in param_groups_layer_decay(
            theirs, 0.05, layer_decay=0.65, no_weight_decay_list=["pos_embed", "cls_token"]
        )
        for parameter in group["params"]
    }
    named = {name: scales[id(parameter)] for name, parameter in theirs.named_parameters()}
    norms = dict(final_norm=pool == "cls", fc_norm=pool == "mean", class_token=True)
    layout = Layout.of(dataclasses.replace(CONFIG, pool=pool, **norms))
    runs = groups(layout, 0.65).runs
    for name, entry in layout.entries.items():
        there = re.sub(r"attn\.[qkv]\.", "attn.qkv.", name).replace("patch_embed.", "patch_embed.proj.")
        run = runs[(runs["start"] <= entry.offset) & (entry.offset + entry.size <= runs["stop"])].item()
        scale, decay = named.pop(there) if "qkv" not in there else named[there]
        further = 0.65 if name.startswith("norm.") else 1
        assert (run[2] * further, run[3]) == (pytest.approx(scale, rel=1e-15), decay), name
    assert set(runs["rate"]) == {0.65**power for power in range(5)}
    assert all("qkv" in name for name in named)


def test_untrained_state_takes_no_memory():
    """Pages that nobody has touched have no memory: the state of 4 million weights of which a few are trained."""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc")
    layout = Layout.of(ViTConfig(image_size=8, patch_size=4, channels=1, width=256, depth=6, heads=4, classes=3))
    w, grad = np.zeros((2, layout.size), np.float64)
    w[:] = grad[:] = 1
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    before = resident()
    optimizer = AdamW(layout, dtype=np.float64, trained=("head.*",))
    for _ in range(2):
        optimizer.step(w, grad, clip_norm=1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert resident() - before < 0.1 * 2 * 8 * layout.size
    assert optimizer.m[layout.offset("head.weight")] != 0


def test_a_state_holds_the_trained_values_alone():
    w, grads = drawn(np.float32, 3)
    optimizer = AdamW(LAYOUT, trained=CHOICES["two runs"])
    for grad in grads:
        optimizer.step(w, grad)
    state, other, others = optimizer.state_dict(), AdamW(LAYOUT, trained=CHOICES["two runs"]), w.copy()
    assert state["m"].shape == state["v"].shape == (optimizer.groups.count,) and state["m"].all()
    assert state["spans"] == [[span["start"], span["stop"]] for span in optimizer.groups.spans]
    other.load_state_dict(state)
    assert same_bits((other.m, other.v), (optimizer.m, optimizer.v))
    optimizer.step(w, grads[0]), other.step(others, grads[0])
    assert same_bits(w, others)
    for trained, message in [(None, "does not know: 'spans'"), (("blocks.1.*",), "is of other trained tensors")]:
        with pytest.raises(ValueError, match=message):
            AdamW(LAYOUT, trained=trained).load_state_dict(state)
    with pytest.raises(ValueError, match="m must have shape"):
        optimizer.load_state_dict({**state, "m": state["m"][1:]})
    optimizer.m = np.ones(LAYOUT.size, np.float32)
    assert optimizer.m.sum() == optimizer.groups.count


@pytest.mark.parametrize("make, options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_naming_everything_changes_no_bit(make, options):
    (w, grads), (other, _) = drawn(np.float32, 3), drawn(np.float32, 3)
    plain, named = make(LAYOUT, 0.1, **options), make(LAYOUT, 0.1, trained=["*"], layer_decay=1, **options)
    for grad in grads:
        assert same_bits(plain.step(w, grad, clip_norm=0.5), named.step(other, grad, clip_norm=0.5))
    assert same_bits(w, other) and plain.state_dict().keys() == named.state_dict().keys()


def test_any_number_of_threads_gives_the_same_bits():
    def call():
        w, grads = drawn(np.float32, 2, WIDE)
        optimizer = AdamW(WIDE, layer_decay=0.7, trained=["blocks.1.*", "*.bias"])
        return [optimizer.step(w, grad, clip_norm=1.0) for grad in grads], w, optimizer.m

    on_all_threads(call)


def test_the_norm_beyond_the_element_type_is_of_the_trained_parts():
    w, grads = drawn(np.float32, 1)
    grad = np.full_like(grads[0], 1e30)
    grad[: LAYOUT.offset("head.weight")] = np.inf
    optimizer = SGD(LAYOUT, 1.0, trained=["head.*"])
    count, before = optimizer.groups.count, w.copy()
    assert optimizer.step(w, grad, clip_norm=1e-20) == pytest.approx(1e30 * count**0.5, rel=1e-6)
    assert same_bits(w[:-count], before[:-count]) and np.isfinite(w).all()
    grad[-1] = np.nan
    with pytest.raises(ValueError, match="grad must be finite, but its norm is nan"):
        optimizer.step(w, grad, clip_norm=1)


def test_runs_join_where_they_are_alike():
    one = groups(LAYOUT)
    assert one.whole and one.slices() == [slice(0, LAYOUT.size)]
    assert [(run["start"], run["stop"]) for run in one.runs if run["decay"]] == LAYOUT.decay_runs()
    assert one.runs.dtype == update.RUN and (one.runs["rate"] == 1).all()


# ---------------------------------------------------------------------------------------------------------- freezing
@pytest.mark.parametrize(
    "options, trained, first",
    [
        ({}, ["*"], None),
        (dict(patterns=["patch_embed.*"]), ["cls_token", "pos_embed", "blocks.*", "norm.*", "head.*"], None),
        (dict(patterns=["patch_embed.*", "cls_token", "pos_embed"]), ["blocks.*", "norm.*", "head.*"], 0),
        (dict(last_blocks=3), ["blocks.*", "norm.*", "head.*"], 0),
        (dict(last_blocks=1), ["blocks.2.*", "norm.*", "head.*"], 2),
        (dict(last_blocks=0), ["norm.*", "head.*"], 3),
        (
            dict(last_blocks=2, patterns=["blocks.1.*", "*.bias"]),
            ["blocks.2.*.weight", "norm.weight", "head.weight"],
            2,
        ),
        (dict(head_only=True), ["head.*"], "head"),
        (dict(last_blocks=0, patterns=["norm.*"]), ["head.*"], "head"),
        (dict(head_only=True, patterns=["*.bias"]), ["head.weight"], "head"),
    ],
)
def test_freezing(options, trained, first):
    assert freezing(LAYOUT, **options) == (matching("trained", LAYOUT, trained), first)


def test_the_head_of_the_distillation_token_is_a_head():
    small = dict(image_size=8, patch_size=4, width=6, depth=1, heads=2, classes=3)
    two = Layout.of(ViTConfig(**small, dist_token=True, dist_head=True))
    before = Layout.of(ViTConfig(**small, pre_logits=7))
    names, first = freezing(two, head_only=True)
    assert names == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"} and first == "head"
    names, first = freezing(before, ["blocks.*", "patch_embed.*", "cls_token", "pos_embed", "norm.*"])
    assert names == {"pre_logits.weight", "pre_logits.bias", "head.weight", "head.bias"} and first == 1


HEADLESS = Layout.of(ViTConfig(image_size=8, patch_size=4, width=6, depth=1, heads=2, classes=0))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: freezing(LAYOUT, ["block.0.*"]), ValueError, r"patterns: 'block.0.\*' matches no .* blocks.0.attn"),
        (lambda: freezing(LAYOUT, "blocks.*"), TypeError, "patterns must be a sequence of patterns"),
        (lambda: freezing(LAYOUT, [3]), TypeError, "patterns must be a sequence of patterns, texts, got 3"),
        (lambda: freezing(LAYOUT, ["*"]), ValueError, "must leave a tensor to train"),
        (lambda: freezing(LAYOUT, last_blocks=4), ValueError, "last_blocks must be at most 3, got 4"),
        (lambda: freezing(HEADLESS, head_only=True), ValueError, "head_only needs a model with a head"),
        (lambda: freezing(ViT(CONFIG)), TypeError, "layout must be a Layout, as model.layout is, got ViT"),
        (lambda: AdamW(LAYOUT, trained=["heads.*"]), ValueError, r"trained: 'heads.\*' matches no tensor.* head.bias"),
        (lambda: AdamW(LAYOUT, trained=[]), ValueError, "trained must name at least one tensor"),
        (lambda: AdamW(LAYOUT, trained=lambda name: False), ValueError, "trained must name at least one tensor"),
        (lambda: AdamW(LAYOUT, trained=3), TypeError, "trained must be a sequence of patterns"),
        (lambda: SGD(LAYOUT, layer_decay=0), ValueError, "layer_decay must be above 0 and at most 1, got 0"),
        (lambda: SGD(LAYOUT, layer_decay=1.1), ValueError, "layer_decay must be above 0 and at most 1, got 1.1"),
        (lambda: SGD(LAYOUT, layer_decay="x"), TypeError, "layer_decay must be a number"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
