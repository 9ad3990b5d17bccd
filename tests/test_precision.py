"""`precision` as a user meets it: models of "bf16", their passes, copies, threads and errors.

What bfloat16's arithmetic is, to the bit, is tested in test_bf16.py; here stands what of it reaches a `ViT`, in
test_precision_training.py what of it training takes, in test_precision_files.py what of it is kept.
"""

import copy
import os
import pickle
import threading

import numpy as np
import pytest
from checks import distance, same_bits
from precision_cases import SMALL, batch, model, outputs, weights

from cvit import ViT, ViTConfig
from cvit.engine import team
from cvit.model import precision as precisions


# -------------------------------------------------------------------------------------------------------- the argument
def test_the_precision_follows_from_the_dtype_or_the_dtype_from_the_precision():
    assert (ViT(SMALL).precision, ViT(SMALL).dtype) == ("f32", np.float32)
    for options, wanted in [
        (dict(dtype=np.float64), ("f64", np.float64)),
        (dict(precision="f64"), ("f64", np.float64)),
        (dict(precision="f32"), ("f32", np.float32)),
        (dict(precision="bf16"), ("bf16", np.float32)),
        (dict(precision="bf16", dtype=np.float32), ("bf16", np.float32)),
        (dict(weights=weights().astype(np.float64)), ("f64", np.float64)),
        (dict(weights=weights(), precision="bf16"), ("bf16", np.float32)),
    ]:
        made = ViT(SMALL, **options)
        assert (made.precision, made.dtype, made.weights.dtype) == (*wanted, wanted[1])


def test_the_weights_of_a_seed_are_those_of_float32():
    assert same_bits(ViT(SMALL, seed=3, precision="bf16").weights, ViT(SMALL, seed=3).weights)


def test_bf16_is_written_where_the_dtype_does_not_say_it():
    assert repr(model()).endswith("weights, float32, precision bf16)")
    assert repr(model(precision="f32")).endswith("weights, float32)")


@pytest.mark.parametrize("faster, wanted", [(True, "bf16"), (False, "f32")])
def test_auto_is_what_is_faster_and_stays_what_it_became(monkeypatch, faster, wanted):
    monkeypatch.setattr(precisions.team, "bf16_is_faster", lambda: faster)
    made = model(precision="auto")
    assert made.precision == wanted
    monkeypatch.setattr(precisions.team, "bf16_is_faster", lambda: not faster)
    for other in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.precision == wanted


def test_auto_asks_the_kernels():
    assert model(precision="auto").precision == ("bf16" if team.isa_of("bf16") == "amx" else "f32")


def test_bf16_fast_is_refused_without_its_instruction(monkeypatch):
    monkeypatch.setattr(precisions.team, "has_precision", lambda name: name != "bf16-fast")
    with pytest.raises(ValueError, match="precision 'bf16-fast' needs a CPU with AVX512-BF16"):
        model(precision="bf16-fast")


def test_other_weights_keep_the_precision():
    made = model()
    made.weights = weights(seed=9)
    assert made.precision == "bf16"
    with pytest.raises(TypeError, match="weights must be float32, as the model is, got float64"):
        made.weights = weights().astype(np.float64)


# ----------------------------------------------------------------------------------------------------------- its passes
def test_every_pass_is_near_float32s_and_not_the_same(bf16_isa):
    x, y = batch()
    found, expected = outputs(model(), x, y), outputs(model(precision="f32"), x, y)
    for name, values in found.items():
        assert values.dtype == (np.float64 if name == "loss" else np.float32), name
        assert 0 < distance(values, expected[name]) < 0.02, name


def test_images_of_float64_are_read_as_float32():
    x, _ = batch()
    assert same_bits(model().forward(x.astype(np.float64)), model().forward(x))


def test_a_frozen_model_computes_the_same_bits():
    x, y = batch()
    frozen, thawed = outputs(model().freeze(), x, y), outputs(model(), x, y)
    assert all(same_bits(values, thawed[name]) for name, values in frozen.items())
    unfrozen = outputs(model().freeze().unfreeze(), x, y)
    assert all(same_bits(values, unfrozen[name]) for name, values in thawed.items())


def test_packed_weights_take_half_of_float32s_memory():
    wide = ViTConfig(image_size=8, patch_size=4, width=192, depth=3, heads=3, classes=10)
    packed = [model(wide, precision=kind).freeze()._state.packed.buffers["packed weights"] for kind in ("bf16", "f32")]
    assert packed[0] <= 0.55 * packed[1]


def test_a_plan_tells_of_the_precisions_memory():
    halves, wholes = (model(precision=kind).plan(32, "train").bytes for kind in ("bf16", "f32"))
    assert 0 < halves < wholes


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["copy", "deepcopy", "pickle"])  # fmt: skip
@pytest.mark.parametrize("frozen", [False, True])
def test_copies_compute_the_same_bits(copied, frozen):
    original = model(checkpoint="block")
    other = copied(original.freeze() if frozen else original)
    x, y = batch()
    assert (other.precision, other.frozen, other.checkpoint) == ("bf16", frozen, "block")
    expected = outputs(original, x, y)
    assert all(same_bits(values, expected[name]) for name, values in outputs(other, x, y).items())


def test_a_model_pickled_before_there_were_precisions():
    state = ViT(SMALL, weights()).__getstate__()
    del state["model"]["precision"]
    old = object.__new__(ViT)
    old.__setstate__(state)
    assert old.precision == "f32"


def test_two_precisions_take_turns_on_one_vector():
    """Models that share their weights keep engines of their own."""
    shared, (x, _) = weights(), batch()
    half, whole = ViT(SMALL, shared, precision="bf16"), ViT(SMALL, shared)
    before = half.forward(x), whole.forward(x)
    shared *= 2
    after = half.forward(x), whole.forward(x)
    assert all(distance(b, a) > 0.1 for a, b in zip(before, after))
    assert same_bits(after[0], ViT(SMALL, shared.copy(), precision="bf16").forward(x))


def test_threads_of_one_model_get_their_own_results():
    shared, inputs = model(), [batch(3, seed=seed) for seed in range(4)]
    alone = [outputs(model(), *pair) for pair in inputs]
    found: list = [None] * len(inputs)

    def work(i):
        found[i] = outputs(shared, *inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, expected in zip(found, alone):
        assert all(same_bits(values, expected[name]) for name, values in mine.items())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_the_same_bits():
    made, (x, y) = model(), batch()
    expected = outputs(made, x, y)
    child = os.fork()
    if child == 0:
        found = outputs(made, x, y)
        os._exit(0 if all(same_bits(values, expected[name]) for name, values in found.items()) else 1)
    assert os.waitpid(child, 0)[1] == 0
