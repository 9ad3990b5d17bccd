"""The plain functions against the reference's literal ones, and everything that counts as an array."""

import numpy as np
import pytest
import reference as ref
from checks import assert_close, normal, on_all_threads, peer, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

import cvit

NAMES = ("w_proj", "cls_token", "pos_embed", "blocks_weights", "w_head")


def arrays(N=2, C=3, rows=2, columns=3, P=2, D=12, L=2, classes=5, dtype=np.float64, seed=0):
    """Random arguments of `vit_train_step` by name: x, y and the weights."""
    rng = np.random.default_rng(seed)
    T = rows * columns + 1
    shapes = dict(
        w_proj=(C * P * P, D), cls_token=(D,), pos_embed=(T, D), blocks_weights=(L, 6, D, D), w_head=(D, classes)
    )
    made = dict(x=normal(rng, N, C, rows * P, columns * P, dtype=dtype), y=rng.integers(classes, size=N))
    for name, shape in shapes.items():
        made[name] = normal(rng, *shape, dtype=dtype) * dtype(1 / np.sqrt(shape[-2] if len(shape) > 1 else 1))
    return made


def weights(a):
    return [a[name] for name in NAMES]


def calls(a, heads):
    """Each function's result for the arguments `a`."""
    tokens = normal(np.random.default_rng(1), len(a["x"]), *a["pos_embed"].shape, dtype=a["x"].dtype.type)
    embedding = a["x"], a["w_proj"], a["cls_token"], a["pos_embed"]
    blocks = a["blocks_weights"]
    return {
        "patch_embed_with_cls": lambda f: f.patch_embed_with_cls(*embedding),
        "vit_block": lambda f: f.vit_block(tokens, *blocks[0], heads) if len(blocks) else tokens,
        "vit_classify": lambda f: f.vit_classify(a["x"], *weights(a), heads),
        "vit_train_step": lambda f: f.vit_train_step(a["x"], a["y"], *weights(a), heads, 0.1),
    }


def check(a, heads):
    dtype = a["x"].dtype
    before = {name: array.copy() for name, array in a.items()}
    C, rows, columns = a["x"].shape[1:]
    longest = max(len(a["w_proj"]), len(a["cls_token"]), len(a["pos_embed"]) * len(a["x"]))
    for name, call in calls(a, heads).items():
        result = on_all_threads(lambda: call(cvit))
        # in float32: as many roundings as the stages have terms to sum, see test_model.py
        bound = (
            1e-10 if dtype == np.float64 else (len(a["blocks_weights"]) + 2) * longest * np.finfo(np.float32).eps / 2
        )
        assert_close(
            result, call(ref), bound, name, floor=0.0 if dtype == np.float64 else 1.0
        )  # 1: the size of what is summed
        assert result.dtype == dtype and result.flags.c_contiguous
    assert all(same_bits(a[name], before[name]) for name in a)


@pytest.mark.parametrize(
    "heads, sizes",
    [
        (3, dict()),
        (1, dict(N=1, C=1, rows=1, columns=1, P=1, D=2, L=1, classes=1)),
        (4, dict(N=3, P=4, D=64, classes=10)),
        (7, dict(D=49, C=1, L=3)),
        (2, dict(L=0)),
        (2, dict(rows=17, columns=17, P=1, D=10, L=1)),
        (3, dict(D=261, L=1, N=1)),
        (2, dict(N=70, D=8)),
        (1, dict(classes=1000)),
    ],
    ids=str,
)
def test_functions_equal_the_literal_ones(isa, dtype, heads, sizes):
    check(arrays(dtype=dtype, **sizes), heads)


@settings(max_examples=20)
@given(
    st.integers(1, 4), st.integers(1, 9), st.integers(0, 2),
    st.fixed_dictionaries(dict(N=st.integers(1, 5), C=st.integers(1, 4), rows=st.integers(1, 5),
                               columns=st.integers(1, 5),
                               P=st.integers(1, 5), classes=st.integers(1, 20))),
)  # fmt: skip
def test_functions_of_any_shape(heads, head_width, L, sizes):
    check(arrays(D=heads * head_width, L=L, **sizes), heads)


def test_the_update_is_that_of_the_mean_loss():
    """lr 0 gives the weights back; the step is linear in lr; a repeated batch has the same mean gradient."""
    a = arrays()
    flat = cvit.pack_weights(*weights(a))
    step = lambda lr, x=a["x"], y=a["y"]: cvit.vit_train_step(x, y, *weights(a), 3, lr)
    assert same_bits(step(0), flat)
    gradient = flat - step(1.0)
    assert_close(flat - step(0.25), gradient / 4, 1e-12)
    assert_close(flat - step(1.0, np.concatenate([a["x"]] * 3), np.concatenate([a["y"]] * 3)), gradient, 1e-12)


# ------------------------------------------------------------------------------------------------ what is an array


def strided(array):
    """Every second element of a twice as long array, in every axis."""
    out = np.zeros([2 * n for n in array.shape], array.dtype)
    view = out[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def memory_mapped(array, folder):
    path = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def unaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    out = raw[1:].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


class Wrapped:
    """Not an array, but one can be made of it."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)


class Capsule:
    """DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


FORMS = {
    "strided": strided,
    "reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
    "Fortran": np.asfortranarray,
    "read-only": read_only,
    "memory-mapped": memory_mapped,
    "unaligned": unaligned,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "__array__": Wrapped,
    "DLPack": Capsule,
    "matrix of a subclass": lambda a: a.view(type("Sub", (np.ndarray,), {})),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_array_gives_the_same_bits(form, dtype, tmp_path):
    a = arrays(dtype=dtype)
    change = FORMS[form] if form != "memory-mapped" else lambda array: memory_mapped(array, tmp_path)
    changed = {name: change(array) for name, array in a.items()}
    before = {name: np.asarray(getattr(array, "array", array)).copy() for name, array in changed.items()}
    heads = 3
    for name in ("vit_classify", "vit_train_step"):
        extra = (lambda d: (d["x"], d["y"]), (0.1,)) if name == "vit_train_step" else (lambda d: (d["x"],), ())
        run = lambda d: getattr(cvit, name)(*extra[0](d), *weights(d), heads, *extra[1])
        result = run(changed)
        assert same_bits(result, run(a)) and type(result) is np.ndarray
    embed = lambda d: cvit.patch_embed_with_cls(d["x"], d["w_proj"], d["cls_token"], d["pos_embed"])
    assert same_bits(embed(changed), embed(a))
    tokens = arrays(dtype=dtype)["pos_embed"][None]
    assert same_bits(
        cvit.vit_block(change(tokens), *map(change, a["blocks_weights"][0]), heads),
        cvit.vit_block(tokens, *a["blocks_weights"][0], heads),
    )
    for name, array in changed.items():
        assert same_bits(np.asarray(getattr(array, "array", array)), before[name])


@pytest.mark.parametrize(
    "kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, ">i2", list, tuple]
)
def test_labels_of_any_integer_dtype(kind):
    a = arrays()
    y = kind(a["y"].tolist()) if kind in (list, tuple) else a["y"].astype(kind)
    assert same_bits(
        cvit.vit_train_step(a["x"], y, *weights(a), 3, 0.1), cvit.vit_train_step(a["x"], a["y"], *weights(a), 3, 0.1)
    )


@pytest.mark.parametrize("single", ["x", *NAMES])
def test_mixed_dtypes_are_computed_in_float64(single):
    """One float64 argument makes the call float64, of the float32 arguments' exact values."""
    a = arrays(dtype=np.float32)
    widened = {name: array.astype(np.float64) if name != "y" else array for name, array in a.items()}
    mixed = {**a, single: widened[single]}
    for f in (
        lambda d: cvit.vit_classify(d["x"], *weights(d), 3),
        lambda d: cvit.vit_train_step(d["x"], d["y"], *weights(d), 3, 0.1),
    ):
        result = f(mixed)
        assert result.dtype == np.float64 and same_bits(result, f(widened))


def test_torch_tensors():
    torch = peer("torch")
    for dtype in (np.float32, np.float64):
        a = arrays(dtype=dtype)
        tensors = {name: torch.tensor(array) for name, array in a.items()}
        for name in NAMES:
            tensors[name].requires_grad_()
        result = cvit.vit_train_step(tensors["x"], tensors["y"], *weights(tensors), 3, 0.1)
        assert same_bits(result, cvit.vit_train_step(a["x"], a["y"], *weights(a), 3, 0.1))
        assert same_bits(
            cvit.vit_classify(tensors["x"], *weights(tensors), 3), cvit.vit_classify(a["x"], *weights(a), 3)
        )
        assert all(same_bits(tensors[name].detach().numpy(), a[name]) for name in a)


def test_jax_arrays():
    jax = pytest.importorskip("jax")
    a = arrays(dtype=np.float32)
    on_cpu = jax.devices("cpu")[0]
    given = {name: jax.device_put(array, on_cpu) for name, array in a.items()}
    assert same_bits(cvit.vit_classify(given["x"], *weights(given), 3), cvit.vit_classify(a["x"], *weights(a), 3))
    result = cvit.vit_train_step(given["x"], given["y"], *weights(given), 3, 0.1)
    assert same_bits(result, cvit.vit_train_step(a["x"], a["y"], *weights(a), 3, 0.1))


# --------------------------------------------------------------------------------------------------- pack and unpack


@pytest.mark.parametrize("L", [0, 2])
def test_unpack_takes_pack_back_without_copying(dtype, L):
    a = arrays(L=L, dtype=dtype)
    flat = cvit.pack_weights(*weights(a))
    assert flat.dtype == dtype and flat.ndim == 1
    views = cvit.unpack_weights(flat, 12, 7, 12, L, 5)
    assert list(views) == list(NAMES)
    for name, view in views.items():
        assert same_bits(view, a[name]) and view.base is not None and (L == 0 or np.shares_memory(view, flat))
    views["w_head"][...] = 7
    assert (flat[-60:] == 7).all()


def test_the_order_is_that_of_the_layout():
    a = arrays()
    config = cvit.ViTConfig.plain(image_size=(4, 6), patch_size=2, channels=3, width=12, depth=2, heads=3, classes=5)
    views = cvit.Layout.of(config).views(cvit.pack_weights(*weights(a)))
    for i in range(2):
        for j, name in enumerate(("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")):
            assert same_bits(views[f"blocks.{i}.{name}.weight"], a["blocks_weights"][i, j])
    assert same_bits(views["patch_embed.weight"], a["w_proj"]) and same_bits(views["head.weight"], a["w_head"])
    assert same_bits(views["cls_token"], a["cls_token"]) and same_bits(views["pos_embed"], a["pos_embed"])


def test_unpack_keeps_a_read_only_vector_read_only():
    flat = cvit.pack_weights(*weights(arrays()))
    flat.flags.writeable = False
    assert not any(view.flags.writeable for view in cvit.unpack_weights(flat, 12, 7, 12, 2, 5).values())


def test_training_by_steps_learns():
    """Thirty steps on eight images: the loss falls to a tenth, through pack, step and unpack alone."""
    a = arrays(N=8, D=24, classes=4)
    current = weights(a)
    losses = []
    for _ in range(30):
        logits = cvit.vit_classify(a["x"], *current, 3)
        losses.append(cvit.ops.cross_entropy(logits, a["y"] % 4))
        flat = cvit.vit_train_step(a["x"], a["y"] % 4, *current, 3, 0.1)
        current = list(cvit.unpack_weights(flat, 12, 7, 24, 2, 4).values())
    assert losses[-1] < 0.1 * losses[0]
