"""What a ViT is beside its numbers: whose the arrays are, weights assigned and frozen, copies, batches of any size."""

import concurrent.futures
import copy
import gc
import multiprocessing
import operator
import pickle

import numpy as np
import pytest
from checks import assert_close, same_bits
from test_model import CASES, TINY, bound, rounded_problem

import cvit
from cvit import Layout, ViT, ViTConfig

# ------------------------------------------------------------------------------------------------- whose the arrays are


def test_every_engine_starts_from_nothing(monkeypatch):
    """Memory that is full of NaN gives the same bits: nothing is read before it was written."""
    from cvit.engine import plan as _engine
    from cvit.engine import vectors

    allocate = _engine.allocate

    def full_of_nan(count, dtype):
        memory = allocate(count, dtype)
        memory.view(np.uint8)[:] = 255  # every float of ones alone is a NaN
        return memory

    for N, config in CASES.values():
        flat, x, y = rounded_problem(config, N, np.float32)
        results = []
        for dirty in (False, True):
            for module in (_engine, vectors):
                monkeypatch.setattr(module, "allocate", full_of_nan if dirty else allocate)
            model = ViT(config, flat)
            loss, grad = model.loss_and_grad(x, y)
            results.append((loss, grad.copy(), model.logits.copy(), model.forward(x), model.freeze().forward(x)))
        assert same_bits(*results)


def test_weights_are_kept_and_used_as_they_are_now():
    flat, x, _ = rounded_problem(TINY, 2, np.float32)
    model = ViT(TINY, flat)
    assert model.weights is flat and model.dtype == np.float32
    before = model.forward(x)
    flat *= np.float32(0.5)
    after = model.forward(x)
    assert not same_bits(before, after)
    assert same_bits(after, ViT(TINY, flat.copy()).forward(x))


def test_read_only_weights_are_copied():
    flat, x, _ = rounded_problem(TINY, 2, np.float64)
    flat.flags.writeable = False
    model = ViT(TINY, flat)
    model.weights[:] = 0
    assert flat.any() and not model.forward(x).any()


def test_gradient_goes_where_it_is_told():
    flat, x, y = rounded_problem(TINY, 2, np.float32)
    model = ViT(TINY, flat)
    out = np.full_like(flat, np.nan)
    loss, grad = model.loss_and_grad(x, y, out=out)
    assert grad is out
    again = model.loss_and_grad(x, y)
    assert again[0] == loss and again[1] is not out and same_bits(again[1], out)


def test_gradients_are_the_callers_while_he_holds_them():
    """Kept, compared and added up: none is written over by a later call, however it is held."""
    flat, x, y = rounded_problem(TINY, 6, np.float64)
    model = ViT(TINY, flat)
    expected = [ViT(TINY, flat).loss_and_grad(x[n : n + 1], y[n : n + 1])[1].copy() for n in range(6)]
    grads = [model.loss_and_grad(x[n : n + 1], y[n : n + 1])[1] for n in range(6)]
    assert same_bits(grads, expected)
    first, second = (model.loss_and_grad(x[n : n + 1], y[n : n + 1])[1] for n in (0, 1))
    assert same_bits(first + second, expected[0] + expected[1])
    views = [  # what is left of a gradient when its own name is gone
        lambda grad: grad[3:7], lambda grad: model.layout.views(grad)["head.weight"], memoryview, np.from_dlpack,
        lambda grad: grad.reshape(-1, 1).T[0, :5],
    ]  # fmt: skip
    for view in views:
        held = view(model.loss_and_grad(x[:1], y[:1])[1])
        kept = np.array(held)
        for n in range(6):
            model.loss_and_grad(x[n : n + 1], y[n : n + 1])
        assert same_bits(np.array(held), kept)


def test_the_memory_of_a_gradient_is_used_again(monkeypatch):
    """A loop makes one vector, or takes turns with two if it holds the last gradient during the next call."""
    from cvit.engine import vectors

    made, allocate = [], vectors.allocate
    monkeypatch.setattr(vectors, "allocate", lambda count, dtype: made.append(count) or allocate(count, dtype))
    flat, x, y = rounded_problem(TINY, 2, np.float32)
    model = ViT(TINY, flat)
    for _ in range(10):
        model.loss_and_grad(x, y)
    assert len(made) == 1
    for _ in range(10):
        _, grad = model.loss_and_grad(x, y)
    assert len(made) == 2
    many = [model.loss_and_grad(x, y)[1] for _ in range(20)]
    assert len({grad.ctypes.data for grad in many}) == 20
    del many, grad
    gc.collect()
    assert len(model._gradients._kept) == vectors.KEPT  # the others' memory is given back
    model.loss_and_grad(x, y, out=np.empty_like(flat))
    for _ in range(10):
        held = [model.loss_and_grad(x, y)[1] for _ in range(4)]
        del held
    assert len(made) <= 21


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(dtype, pieces):
    flat, x, y = rounded_problem(TINY, 8, dtype)
    model = ViT(TINY, flat)
    whole, expected = model.loss_and_grad(x, y)
    total, losses = np.zeros_like(flat), []
    for part in np.split(np.arange(8), pieces):
        loss, grad = model.loss_and_grad(x[part], y[part], out=total, accumulate=True)
        assert grad is total
        losses.append(loss)
    assert np.mean(losses) == pytest.approx(whole, rel=1e-6)
    assert_close(total / pieces, expected, bound(TINY, 8, dtype))
    if pieces == 1:
        assert same_bits(total, expected)


def test_logits_of_two_calls_are_two_arrays():
    flat, x, y = rounded_problem(TINY, 2, np.float32)
    model = ViT(TINY, flat)
    assert model.logits is None
    model.loss_and_grad(x, y)
    first, kept = model.logits, model.logits.copy()
    model.loss_and_grad(x * 2, y)
    assert same_bits(first, kept) and not np.may_share_memory(first, model.logits)
    assert same_bits(model.logits, model.forward(x * 2))


def test_results_are_new_arrays():
    flat, x, _ = rounded_problem(TINY, 2, np.float32)
    model = ViT(TINY, flat)
    for call in (model.forward, model.features):
        first = call(x)
        kept = first.copy()
        second = call(x * 2)
        assert same_bits(first, kept) and not np.may_share_memory(first, second)


# ------------------------------------------------------------------------------- weights that are assigned, frozen


def test_weights_may_be_assigned():
    """A vector that can be updated in place is kept, another one copied: read-only, of another byte order or stride."""
    flat, x, _ = rounded_problem(TINY, 2, np.float32)
    best = (flat * np.float32(0.5)).astype(np.float32)
    expected = ViT(TINY, best).forward(x)
    read_only, strided = best.copy(), np.repeat(best, 2)[::2]
    read_only.flags.writeable = False
    unaligned = np.frombuffer(bytearray(1) + best.tobytes(), np.uint8)[1:].view(np.float32)
    for value in (best, read_only, strided, unaligned, best.astype(">f4")):
        model = ViT(TINY, flat.copy())
        before = model.forward(x)
        model.weights = value
        assert same_bits(model.forward(x), expected) and not same_bits(before, expected)
        model.weights[:] = 0  # writable
    assert not best.any() and read_only.any() and strided.any() and unaligned.any()
    model.weights = best
    assert model.weights is best
    model.weights += np.float32(1)
    assert model.weights is best and (best == 1).all()


def test_a_frozen_model_computes_with_a_copy():
    """All of it: biases and positions, which are not packed, too."""
    flat, x, y = rounded_problem(TINY, 2, np.float32)
    model = ViT(TINY, flat)
    expected = model.forward(x)
    assert not model.frozen and model.freeze() is model and model.frozen
    weights = model.weights
    flat[:] = 7
    assert same_bits(model.forward(x), expected) and same_bits(weights, model.weights)
    assert model.freeze() is model and same_bits(model.forward(x), expected)
    with pytest.raises(ValueError, match="read-only"):
        model.weights[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        model.weights.flags.writeable = True
    with pytest.raises(ValueError, match=r"this model is frozen: call unfreeze\(\) before giving it other weights"):
        model.weights = flat
    with pytest.raises(ValueError, match=r"this model is frozen: call unfreeze\(\) before training it"):
        model.loss_and_grad(x, y)
    assert same_bits(model.forward(x), expected)
    assert model.unfreeze() is model and not model.frozen and model.weights is flat
    assert same_bits(model.forward(x), ViT(TINY, flat).forward(x))
    assert model.unfreeze() is model


def test_unfreeze_gives_back_the_very_vector():
    """A slice of a larger vector that an optimizer or another model works on."""
    size = Layout.of(TINY).size
    large = np.ones(size + 20, np.float32)
    model = ViT(TINY, large[10:-10])
    given = model.weights
    model.freeze().unfreeze()
    assert model.weights is given
    large[:] = 0
    assert not model.weights.any()


def test_a_freeze_that_fails_changes_nothing(monkeypatch):
    from cvit.engine import plan

    flat, x, y = rounded_problem(TINY, 2, np.float32)
    model = ViT(TINY, flat)
    expected = model.forward(x)

    def full(count, dtype):
        raise MemoryError("no room")

    monkeypatch.setattr(plan, "allocate", full)
    with pytest.raises(MemoryError):
        model.freeze()
    monkeypatch.undo()
    assert not model.frozen and model.weights is flat and flat.flags.writeable
    assert same_bits(model.forward(x), expected)
    model.loss_and_grad(x, y)


# ------------------------------------------------------------------------------------------------------------ copies


def duplicates(model):
    return {
        "copy": copy.copy(model),
        "deepcopy": copy.deepcopy(model),
        **{f"pickle {protocol}": pickle.loads(pickle.dumps(model, protocol)) for protocol in range(6)},
    }


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("checkpoint", [None, "block"])
def test_copies_compute_the_same(dtype, frozen, checkpoint):
    flat, x, y = rounded_problem(TINY, 3, dtype)
    model = ViT(TINY, flat, checkpoint=checkpoint)
    loss, grad = model.loss_and_grad(x, y)
    model.note = "mine"
    if frozen:
        model.freeze()
        flat_before = flat.copy()
        flat[:] = 0  # what counts is what the frozen model computes with
    logits = model.forward(x)
    for other in duplicates(model).values():
        assert (other.config, other.checkpoint, other.dtype, other.frozen) == (TINY, checkpoint, dtype, frozen)
        assert other.note == "mine" and other.logits is None and same_bits(other.forward(x), logits)
        assert same_bits(other.unfreeze().loss_and_grad(x, y), (loss, grad))
    if frozen:
        flat[:] = flat_before


def test_what_copies_share():
    """`copy.copy` the weights, the others nothing; none the lock or an engine."""
    flat, x, _ = rounded_problem(TINY, 3, np.float32)
    model = ViT(TINY, flat)
    model.forward(x)
    for name, other in duplicates(model).items():
        assert (other.weights is flat) == (name == "copy") and not other._engines and other._lock is not model._lock
    assert len(pickle.dumps(model)) < flat.nbytes + 2000


def test_what_a_copy_leaves_out_is_all_that_a_model_holds():
    """A new private attribute must be listed, or it would travel with a copy."""
    from cvit.model import copies

    model = ViT(TINY)
    assert set(vars(model)) == copies.ATTRIBUTES
    assert set(model.__getstate__()) == {"model", "added"} and not model.__getstate__()["added"]


def test_a_subclass_is_copied_as_such():
    for other in duplicates(Named(TINY, name="left")).values():
        assert type(other) is Named and other.name == "left"


class Named(ViT):
    def __init__(self, config, name):
        super().__init__(config)
        self.name = name


def test_joblib(tmp_path):
    joblib = pytest.importorskip("joblib")
    flat, x, _ = rounded_problem(TINY, 3, np.float32)
    model = ViT(TINY, flat)
    joblib.dump(model, tmp_path / "model")
    for mode in (None, "r", "c"):
        other = joblib.load(tmp_path / "model", mmap_mode=mode)
        assert same_bits(other.forward(x), model.forward(x))
        other.weights[:] = 0


def test_a_model_goes_to_a_spawned_worker():
    flat, x, y = rounded_problem(TINY, 3, np.float32)
    model = ViT(TINY, flat)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        logits = pool.submit(operator.methodcaller("forward", x), model).result()
        trained = pool.submit(operator.methodcaller("loss_and_grad", x, y), model).result()
        config, optimizer = pool.submit(copy.copy, (model.config, cvit.AdamW(model))).result()
    assert same_bits(logits, model.forward(x)) and same_bits(trained, model.loss_and_grad(x, y))
    assert config == model.config and optimizer.size == flat.size


# ---------------------------------------------------------------------------------------------------- large batches


def test_inference_takes_a_batch_in_pieces(monkeypatch, dtype):
    """Of bounded memory; the results are the same bits, whatever the images' type and layout."""
    from cvit.engine import plan
    from cvit.model import vit

    flat, x, _ = rounded_problem(TINY, 150, dtype)
    whole = ViT(TINY, flat)
    expected = whole.forward(x), whole.features(x)
    assert len(whole._engines) == 1 and "pieces" not in str(whole.plan(150, "infer"))
    limit = whole.plan(40, "infer").bytes - whole.plan(1, "infer").bytes
    monkeypatch.setattr(vit, "PIECE_BYTES", limit)
    made, allocate = [], plan.allocate

    def recorded(count, kind):
        made.append(count * np.dtype(kind).itemsize)
        return allocate(count, kind)

    monkeypatch.setattr(plan, "allocate", recorded)
    for frozen in (False, True):
        model = ViT(TINY, flat)
        one = model.plan(1, "infer").bytes
        if frozen:
            model.freeze()
        made.clear()
        for images in (x, x.astype(">f8"), x[::-1].copy()[::-1], list(x)):
            assert same_bits((model.forward(images), model.features(images)), expected)
        assert len(model._engines) == 1 and 0 < sum(made) <= one + limit
        piece = 50 if frozen else 30  # the packing of a block's weights takes room of its own
        assert model.plan(150, "infer").piece == piece and f"in pieces of {piece}" in str(model.plan(150, "infer"))
        for N in (1, 2, 31, 32, 33, 63, 65, 149):
            assert same_bits(model.forward(x[:N]), expected[0][:N])


def test_the_usual_batches_are_one_piece():
    for name, changes, N in [("S/16", {}, 32), ("B/16", {}, 32), ("Ti/16", dict(image_size=32, patch_size=4), 256)]:
        model = ViT(ViTConfig.variant(name, **{"depth": 1, **changes}))
        assert model._piece(N) == N
    assert ViT(CASES["digits"][1])._piece(4096) == 4096


def test_a_batch_of_any_size_has_a_plan_for_inference():
    plan = ViT(TINY).plan(10**15, "infer")
    assert plan.batch == 10**15 and 1 < plan.piece < 10**7 and plan.bytes < 300e6


def test_batch_sizes_and_modes_do_not_mix():
    """Engines are kept by batch size and mode, the oldest one leaves: results are always those of a fresh model."""
    flat, x, y = rounded_problem(TINY, 9, np.float32)
    model = ViT(TINY, flat)
    for N in (3, 1, 9, 2, 5, 3, 7, 9, 1):
        fresh = ViT(TINY, flat)
        assert same_bits(model.forward(x[:N]), fresh.forward(x[:N]))
        assert same_bits(model.loss_and_grad(x[:N], y[:N]), fresh.loss_and_grad(x[:N], y[:N]))


@pytest.mark.parametrize(
    "kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, ">i4", list]
)
def test_labels_of_any_integer_dtype(kind):
    flat, x, y = rounded_problem(TINY, 4, np.float32)
    labels = y.tolist() if kind is list else y.astype(kind)
    assert same_bits(ViT(TINY, flat).loss_and_grad(x, labels), ViT(TINY, flat).loss_and_grad(x, y))


def test_images_of_the_other_dtype_are_converted():
    flat, x, _ = rounded_problem(TINY, 2, np.float32)
    assert same_bits(ViT(TINY, flat).forward(x.astype(np.float64)), ViT(TINY, flat).forward(x))
    assert ViT(TINY, flat.astype(np.float64)).forward(x).dtype == np.float64


def test_fresh_weights_start_from_equal_logits():
    model = ViT(TINY, seed=3, dtype=np.float64)
    assert same_bits(model.weights, cvit.init_weights(TINY, 3, dtype=np.float64))
    loss, _ = model.loss_and_grad(np.ones((2, 2, 4, 6)), [0, 4])
    assert loss == pytest.approx(np.log(5), rel=1e-14)
    assert "12" in repr(model) and f"{model.weights.size:,}" in repr(model)
