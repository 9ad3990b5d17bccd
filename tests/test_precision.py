"""`precision` as a user meets it: models of "bf16", their copies, files, threads and errors.

What bfloat16's arithmetic is, to the bit, is tested in test_bf16.py; here stands what of it reaches a `ViT`.
"""

import copy
import os
import pickle
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from checks import same_bits

import cvit
from cvit import SGD, AdamW, Layout, ViT, ViTConfig
from cvit.base.arrays import is_fixed
from cvit.engine import team, update
from cvit.formats.bfloat16 import bits_of
from cvit.formats.safetensors_file import read_safetensors
from cvit.model import precision as precisions
from cvit.train.ema import EMA
from cvit.train.loop import Loop

SMALL = ViTConfig(image_size=(8, 12), patch_size=2, channels=2, width=30, depth=2, heads=3, hidden=50, classes=7)


def weights(config=SMALL, seed=0):
    return (0.2 * np.random.default_rng(seed).standard_normal(Layout.of(config).size)).astype(np.float32)


def model(config=SMALL, **options):
    return ViT(config, weights(config), **{"precision": "bf16", **options})


def batch(N=5, config=SMALL, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, config.channels, *config.image_size)).astype(np.float32)
    return x, rng.integers(config.classes, size=N)


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def outputs(model, x, y):
    """Everything that a model computes, as arrays."""
    results = {name: getattr(model, name)(x) for name in ("forward", "features", "tokens", "attention")}
    results |= {f"front {first}": model.front(x, first) for first in (0, 1, "head")}
    results |= {f"layer {i}": values for i, values in enumerate(model.tokens(x, [0, 1], norm=True))}
    if not model.frozen:
        loss, grad = model.loss_and_grad(x, y)
        results |= {"loss": np.array(loss), "grad": grad.copy(), "logits": model.logits.copy()}
    return results


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
def test_every_pass_is_near_float32s_and_not_the_same(isa):
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


# ------------------------------------------------------------------------------------------------------------- training
def steps(made, count=3, optimizer=AdamW, **options):
    """Weights after some steps of an optimizer on a model, and the gradients' norms."""
    optimizer = optimizer(made, 1e-2, weight_decay=0.05, **options)
    norms = []
    for step in range(count):
        _, grad = made.loss_and_grad(*batch(seed=step))
        norms.append(optimizer.step(made.weights, grad, clip_norm=1.0))
    return made.weights.copy(), norms


@pytest.mark.parametrize("optimizer", [AdamW, SGD])
def test_optimizers_take_the_models_precision(optimizer, monkeypatch):
    asked = []
    for name in ("adamw", "sgd", "sum_of_squares", "average"):
        original = getattr(update, name)
        monkeypatch.setattr(update, name, lambda *args, f=original: asked.append(args[-1]) or f(*args))
    made = model()
    steps(made, 1, optimizer)
    EMA(made).update(made.weights)
    assert asked == ["bf16"] * 3 and optimizer(made).precision == "bf16"
    assert optimizer(made, dtype=np.float32).precision == optimizer(made.layout).precision == "f32"
    assert optimizer(made.layout, precision="bf16").precision == "bf16"
    with pytest.raises(ValueError, match="dtype must be float32 for precision 'bf16', got float64"):
        optimizer(made, dtype=np.float64, precision="bf16")
    with pytest.raises(ValueError, match="precision must be one of"):
        optimizer(made, precision="half")


@pytest.mark.parametrize("optimizer", [AdamW, lambda layout, **options: SGD(layout, momentum=0.9, **options)])
def test_a_step_has_the_same_bits_on_every_isa(optimizer):
    """With weights and gradients given: norm, clipping, step and moving average."""
    found, before = [], cvit.get_isa()
    layout = Layout.of(SMALL)
    try:
        for name in cvit.available_isas():
            cvit.set_isa(name)
            flat = weights()
            chosen, average = optimizer(layout, precision="bf16", weight_decay=0.05), EMA(model())
            norms = []
            for step in range(3):
                norms.append(chosen.step(flat, weights(seed=step + 1), lr=1e-2, clip_norm=0.7))
                average.update(flat)
            found.append((flat, average.weights, np.array(norms)))
    finally:
        cvit.set_isa(before)
    for others in found[1:]:
        assert all(same_bits(mine, other) for mine, other in zip(found[0], others))


def test_a_training_has_the_same_bits_on_every_isa():
    """Forward, backward, clipping, optimizer and moving average: what `fit` leaves of two epochs."""
    data, before, found = batch(12), cvit.get_isa(), []
    try:
        for name in cvit.available_isas():
            cvit.set_isa(name)
            loop = Loop(model(), data, data, epochs=2, batch_size=5, clip_norm=0.5, ema=EMA(model()), drop_path=0.1)
            loop.run()
            found.append((loop.model.weights, loop.ema.weights, loop.evaluated.forward(data[0])))
    finally:
        cvit.set_isa(before)
    for others in found[1:]:
        assert all(same_bits(mine, other) for mine, other in zip(found[0], others))


def test_an_optimizers_state_keeps_its_precision():
    made = model()
    one, other = AdamW(made), AdamW(made)
    _, grad = made.loss_and_grad(*batch())
    one.step(made.weights, grad)
    other.load_state_dict(one.state_dict())
    assert other.precision == "bf16" and same_bits(other.m, one.m)


def test_fit_evaluates_the_moving_average_in_the_models_precision():
    made, data = model(), batch(12)
    loop = Loop(made, data, data, epochs=1, batch_size=4, ema=EMA(made))
    loop.run()
    assert loop.evaluated.precision == loop.optimizer.precision == "bf16"
    assert same_bits(loop.evaluated.forward(data[0]), ViT(SMALL, loop.ema.weights, precision="bf16").forward(data[0]))


def test_a_run_goes_on_in_its_own_precision_alone():
    data = batch(12)
    loops = [Loop(model(), data, epochs=2, batch_size=4, seed=3) for _ in range(2)]
    loops[0]._epoch()
    arrays, facts = loops[0].state()
    loops[1].restore({name: values.copy() for name, values in arrays.items()}, facts)
    for loop in loops:
        loop.run()
    assert same_bits(loops[0].model.weights, loops[1].model.weights)
    other = Loop(model(precision="f32"), data, epochs=2, batch_size=4)
    with pytest.raises(ValueError, match="the run was trained in precision 'bf16', so it cannot go on in 'f32'"):
        other.restore(arrays, facts)
    del facts["precision"]  # as runs wrote it before there were precisions
    other.restore(arrays, facts)


# ---------------------------------------------------------------------------------------------------------------- files
def to_bfloat16(x):
    """Rounded to nearest even by exact arithmetic in float64: to 8 leading bits, or to multiples of 2^-133."""
    x = np.asarray(x, np.float64)
    unit = np.maximum(np.frexp(x)[1] - 8, -133)
    return np.ldexp(np.rint(np.ldexp(x, -unit)), unit)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_to_bfloat16(dtype):
    rng = np.random.default_rng(0)
    step = 2.0**-7
    values = np.concatenate([
        rng.standard_normal(300) * 10.0 ** rng.integers(-38, 38, 300),
        [0.0, -0.0, 1.0, 1 + step / 2, 1 + 1.5 * step, -1 - 2.5 * step, 1 + step / 2 + 2.0**-23],
        [1 + step / 2 + 2.0**-40, 1 + step / 2 - 2.0**-40, 2.0**-134, 2.0**-134 * (1 + 2.0**-20), 2.0**-160],
        [2.0**-133, 1.5 * 2.0**-133],
    ]).astype(dtype)  # fmt: skip
    found = (bits_of(values).astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(found.astype(np.float64), to_bfloat16(values))
    assert np.array_equal(np.signbit(found), np.signbit(values))


def test_what_is_no_number_in_bfloat16():
    with np.errstate(over="ignore"):
        values = np.array([np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1e39], np.float64)
    for x in (values, values[:5].astype(np.float32)):
        found = (bits_of(x).astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(found[:5], np.array([np.inf, -np.inf, np.nan, np.inf, -np.inf]), equal_nan=True)
    quiet = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)  # whose upper bits alone are an infinity's
    assert np.isnan((bits_of(quiet).astype(np.uint32) << 16).view(np.float32)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_file_of_bfloat16_holds_the_rounded_weights(tmp_path, dtype):
    made = ViT(SMALL, weights().astype(dtype))
    cvit.save(tmp_path / "whole.safetensors", made)
    cvit.save(tmp_path / "half.safetensors", made, dtype="bf16")
    made.save(tmp_path / "folder", dtype="bf16")
    sizes = [(tmp_path / name).stat().st_size for name in ("whole.safetensors", "half.safetensors")]
    assert sizes[1] < 0.6 * sizes[0]
    for path in ("half.safetensors", "folder"):
        read = cvit.load(tmp_path / path)
        assert (read.dtype, read.precision) == (np.float32, "f32")
        assert np.array_equal(read.weights, to_bfloat16(made.weights))
    again = cvit.load(tmp_path / "half.safetensors", dtype=np.float64)
    assert again.precision == "f64" and np.array_equal(again.weights, read.weights)


def test_a_damaged_file_of_bfloat16_is_refused(tmp_path):
    path = tmp_path / "half.safetensors"
    cvit.save(path, model(), dtype="bf16")
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        cvit.load(path)


def test_other_libraries_files_in_bfloat16(tmp_path):
    square = ViTConfig(image_size=8, patch_size=4, width=32, depth=2, heads=2, hidden=64, classes=5)
    made = ViT(square, weights(square))
    for names in ("timm", "hf"):
        made.save(tmp_path / names, names, dtype="bf16")
        file = read_safetensors(tmp_path / names / "model.safetensors")
        assert {tensor.dtype for tensor in file.values()} == {"bfloat16"} and file.metadata == {"format": "pt"}
        assert np.array_equal(cvit.load(tmp_path / names).weights, to_bfloat16(made.weights))
    assert '"torch_dtype": "bfloat16"' in (tmp_path / "hf" / "config.json").read_text()


@pytest.mark.parametrize("path, dtype, message", [
    ("a.npz", "bf16", "dtype must be None for names 'npz', whose files have no bfloat16, got 'bf16'"),
    ("a.onnx", "bf16", "dtype must be None for names 'onnx', whose files have no bfloat16, got 'bf16'"),
    ("a.safetensors", "f16", "dtype must be 'bf16' or None, got 'f16'"),
    ("a.safetensors", np.float32, "dtype must be 'bf16' or None, got <class 'numpy.float32'>"),
])  # fmt: skip
def test_files_without_bfloat16(tmp_path, path, dtype, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        model().save(tmp_path / path, dtype=dtype)
    assert not any(tmp_path.iterdir())


def test_a_file_says_its_models_precision(tmp_path):
    path = tmp_path / "a.safetensors"
    made = model()
    made.save(path)
    x, _ = batch()
    assert cvit.load(path).precision == "bf16" and same_bits(cvit.load(path).forward(x), made.forward(x))
    assert cvit.load(path, dtype=np.float32).precision == "bf16"
    assert cvit.load(path, classes=3).precision == "bf16"
    for precision in ("f32", "f64"):
        assert cvit.load(path, precision=precision).precision == precision
    assert cvit.load(path, dtype=np.float64).precision == "f64"
    assert cvit.checkpoint.read_metadata(path) == {}
    model(precision="f32").save(path)
    assert b"cvit.precision" not in path.read_bytes() and cvit.load(path).precision == "f32"
    assert cvit.load(path, precision="bf16").precision == "bf16"


def test_a_precision_that_a_file_says_wrongly_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    monkeypatch.setattr(
        cvit.checkpoint, "notes_of", lambda m: {"cvit.config": m.config.to_json(), "cvit.precision": "b"}
    )
    model().save(path)
    with pytest.raises(ValueError, match=re.escape(f"{path}: precision must be one of 'f32', 'f64', 'bf16'")):
        cvit.load(path)


def test_whatever_is_loaded_gets_the_precision_asked_for(tmp_path):
    square = ViTConfig(image_size=8, patch_size=4, width=32, depth=2, heads=2, hidden=64, classes=5)
    ViT(square, weights(square)).save(tmp_path / "timm", "timm")
    made = cvit.load(tmp_path / "timm", precision="bf16")
    assert (made.precision, made.dtype) == ("bf16", np.float32)
    tensors = {name: values.astype(np.float64) for name, values in _arrays(tmp_path / "timm").items()}
    assert cvit.from_state_dict(tensors, num_heads=2).precision == "f64"
    assert cvit.from_state_dict(tensors, num_heads=2, precision="bf16").precision == "bf16"
    with pytest.raises(ValueError, match="dtype must be float32 for precision 'bf16', got float64"):
        cvit.from_state_dict(tensors, num_heads=2, precision="bf16", dtype=np.float64)
    with pytest.raises(ValueError, match="precision must be one of"):
        cvit.load(tmp_path / "timm", precision="half")


def _arrays(folder):
    from safetensors import numpy as safetensors_numpy

    return safetensors_numpy.load_file(folder / "model.safetensors")


# ------------------------------------------------------------------------------------------- weights in the file's map
def test_weights_can_stay_in_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    model().save(path)
    made, x = cvit.load(path, mmap=True), batch()[0]
    assert is_fixed(made.weights) and not made.weights.flags.writeable
    expected = model().forward(x)
    assert same_bits(made.forward(x), expected)
    frozen = made.freeze()._state
    assert np.shares_memory(frozen.weights, frozen.thawed) and same_bits(made.forward(x), expected)
    assert is_fixed(made.unfreeze().weights)
    with pytest.raises(ValueError, match="weights must be writable, got a read-only array"):
        AdamW(made).step(made.weights, np.zeros_like(made.weights))
    copied = copy.deepcopy(made)
    copied.weights[:] = 0
    assert same_bits(made.forward(x), expected)


@pytest.mark.parametrize("stored", [None, "bf16", "timm"])
@pytest.mark.parametrize("how", [dict(precision="f64"), dict(classes=3), dict(precision="bf16")])
def test_weights_that_have_to_be_converted_are_in_memory_once(tmp_path, stored, how):
    square = ViTConfig(image_size=8, patch_size=4, width=32, depth=2, heads=2, hidden=64, classes=5)
    made = ViT(square, weights(square))
    path = tmp_path / ("folder" if stored == "timm" else "a.safetensors")
    made.save(path, *(["timm"] if stored == "timm" else []), dtype="bf16" if stored == "bf16" else None)
    read = cvit.load(path, mmap=True, **how)
    assert is_fixed(read.weights) and same_bits(read.weights, cvit.load(path, **how).weights)
    state = read.freeze()._state
    assert np.shares_memory(state.weights, state.thawed)


def test_mmap_is_true_or_false(tmp_path):
    with pytest.raises(TypeError, match="mmap must be True or False, got 1"):
        cvit.load(tmp_path, mmap=1)


SHARING = """
import re, sys, cvit
def file_pages(path):
    sizes, inside = {}, False
    for line in open("/proc/self/smaps"):
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.rstrip().endswith(path)
        elif inside:
            name, value = line.split(":")
            if value.endswith("kB\\n"):
                sizes[name] = sizes.get(name, 0) + int(value.split()[0])
    return sizes
path = sys.argv[1]
model = cvit.load(path, precision="bf16", mmap=True).freeze()
size = model.weights.nbytes / 1024
pages = file_pages(path)
print(pages["Rss"] / size, pages["Private_Dirty"] / size, pages["Anonymous"] / size, flush=True)
sys.stdin.read()
pages = file_pages(path)
print(pages["Shared_Clean"] / size)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="Linux tells how pages are shared")
def test_processes_share_the_weights_in_a_file(tmp_path):
    """Two processes that freeze the same file hold one copy of its pages between them, and none of their own."""
    path = str(tmp_path / "a.safetensors")
    wide = ViTConfig(image_size=16, patch_size=4, width=256, depth=4, heads=4, classes=10)
    cvit.save(path, ViT(wide))
    command = [sys.executable, "-c", SHARING, path]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    firsts = [[float(part) for part in process.stdout.readline().split()] for process in both]
    lasts = [float(process.communicate("")[0]) for process in both]
    for mapped, dirty, anonymous in firsts:
        assert mapped > 0.9 and dirty == anonymous == 0
    assert max(lasts) > 0.9  # the one that told last while the other was there
