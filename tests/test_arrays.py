"""What the kernels read is the very array that was checked: plain, of the wanted type, and for labels a copy."""

import operator
import re
import threading
from typing import ClassVar

import numpy as np
import pytest
from checks import same_bits

import cvit
from cvit import ViT, ViTConfig, ops
from cvit.base.arrays import any_float, as_array, as_float, as_labels, as_vector

CONFIG = ViTConfig(image_size=4, patch_size=2, channels=1, width=8, depth=1, heads=2, hidden=12, classes=5)


class Liar(np.ndarray):
    """An array whose own methods and attributes say whatever lets it pass."""

    lies: ClassVar = dict(shape=(4, 1, 4, 4), ndim=4, size=4, dtype=np.dtype(np.float32))

    def min(self, *_, **__):
        return 0

    max = min

    def __getattribute__(self, name):
        lies = object.__getattribute__(self, "lies")
        return lies[name] if name in lies else super().__getattribute__(name)

    def __array_function__(self, *_):
        return False

    def __array_ufunc__(self, *_, **__):
        return 0


def lying(array, **lies):
    return np.asarray(array).view(type("Liar", (Liar,), {"lies": lies}))


def test_an_array_is_handed_on_and_a_subclass_viewed_as_its_base():
    array = np.arange(6.0)
    assert as_array("x", array) is array
    for subclass in (Liar, np.matrix, np.memmap, np.recarray):
        plain = as_array("x", array.view(subclass))
        assert type(plain) is np.ndarray and np.shares_memory(plain, array) and plain.dtype == np.float64


def test_other_objects_become_arrays():
    class Array:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    class Capsule:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):  # of the type, where NumPy before 2 looks for it
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    array = np.arange(4.0)
    for value in (array.tolist(), tuple(array), Array(array), Array(lying(array)), Capsule(array), memoryview(array)):
        assert type(as_array("x", value)) is np.ndarray and same_bits(as_array("x", value), array)
    with pytest.raises(TypeError, match="x is a masked array"):
        as_array("x", Array(np.ma.masked_array(array, [0, 0, 0, 1])))


MASKED = [np.ma.masked_array([1, 2, 3, 10**6], mask=[0, 0, 0, 1]), np.ma.masked_array([0, 1, 2, 3])]


@pytest.mark.parametrize("labels", MASKED, ids=["masked", "nothing masked"])
def test_masked_arrays_are_refused_by_name(labels):
    """What lies under a mask may be anything: 10**6 as a label would be an index into foreign memory."""
    model, x = ViT(CONFIG), np.ones((4, 1, 4, 4), np.float32)
    images = np.ma.masked_array(x, mask=x < 0)
    weights = np.ma.masked_array(model.weights)
    calls = {
        "y": lambda: model.loss_and_grad(x, labels),
        "x": lambda: model.forward([images[0], images[1]]),
        "train labels": lambda: cvit.fit(model, (x, labels), epochs=1),
        "test images": lambda: cvit.fit(model, (x, np.zeros(4, int)), (images, np.zeros(4, int)), epochs=1),
        "labels": lambda: ops.cross_entropy_backward(np.ones((4, 5)), labels),
        "w": lambda: ops.linear(x, np.ma.ones((4, 4), np.float32)),
        "grad": lambda: cvit.SGD(model).step(model.weights, weights),
        "weights": lambda: cvit.AdamW(model).step(weights, model.weights.copy()),
        "m": lambda: setattr(cvit.AdamW(model), "m", weights),
        "flat": lambda: cvit.unpack_weights(np.ma.ones(5), 1, 1, 1, 0, 1),
        "image": lambda: cvit.vit_forward(0, np.ma.ones((4, 4, 1)), 2, 8, 2, 12, 1, 5),
        "cls_token": lambda: cvit.patch_embed_with_cls(x, np.ones((4, 3)), np.ma.ones(3), np.ones((5, 3))),
    }
    before = model.weights.copy()
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"^{name} is a masked array: fill it first, with its method filled"):
            call()
    assert same_bits(model.weights, before)


def test_a_subclass_is_checked_by_what_it_holds():
    model, x = ViT(CONFIG), np.ones((4, 1, 4, 4), np.float32)
    y = np.array([0, 1, 2, 10**6])
    size = model.layout.size
    short = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=re.escape("y must lie in [0, 5), got values from 0 to 1000000")):
        model.loss_and_grad(x, lying(y))
    with pytest.raises(ValueError, match=re.escape("labels must lie in [0, 5), got values from 0 to 1000000")):
        ops.cross_entropy(np.ones((4, 5)), lying(y))
    with pytest.raises(ValueError, match=re.escape("x must have shape (N, 1, 4, 4), got (3,)")):
        model.forward(lying(short, shape=(4, 1, 4, 4), ndim=4))
    with pytest.raises(ValueError, match=re.escape(f"out must have shape ({size},), got (3,)")):
        model.loss_and_grad(x, y % 5, out=lying(short, shape=(size,), size=size))
    with pytest.raises(ValueError, match=re.escape(f"weights must have shape ({size},)")):
        ViT(CONFIG, lying(short, shape=(size,), size=size))
    with pytest.raises(TypeError, match="grad must be a NumPy array of float32, got int8 array"):
        cvit.SGD(model).step(model.weights, lying(np.ones(size, np.int8), dtype=np.dtype(np.float32)))
    with pytest.raises(ValueError, match=re.escape(f"weights must have shape ({size},), got (3,)")):
        cvit.SGD(model).step(lying(short, shape=(size,)), np.ones(size, np.float32))
    with pytest.raises(TypeError, match="grad must be a NumPy array of float32 or float64"):
        cvit.train.clip(lying(np.ones(5, np.int8), dtype=np.dtype(np.float32)), 1.0)


def test_out_and_optimizers_take_subclasses_by_their_memory(tmp_path):
    """A memory-mapped vector is written in place, and what the caller gave comes back."""
    model, x, y = ViT(CONFIG, seed=1), np.ones((4, 1, 4, 4), np.float32), [0, 1, 2, 3]
    mapped = np.memmap(tmp_path / "grad", np.float32, "w+", shape=model.layout.size)
    loss, grad = model.loss_and_grad(x, y, out=mapped)
    assert grad is mapped and same_bits((loss, np.asarray(mapped)), model.loss_and_grad(x, y))
    weights = np.memmap(tmp_path / "weights", np.float32, "w+", shape=model.layout.size)
    weights[:] = model.weights
    other = ViT(CONFIG, weights)
    cvit.SGD(other).step(other.weights, grad)
    cvit.SGD(model).step(model.weights, np.asarray(grad))
    assert same_bits(np.asarray(weights), model.weights)


def test_labels_are_a_copy():
    for kind in (np.int64, np.int8, ">i4", np.uint64):
        y = np.array([3, 0, 1], kind)
        labels = as_labels("y", y, 3, 4)
        y[:] = 100
        assert labels.dtype == np.int64 and labels.flags.c_contiguous and labels.tolist() == [3, 0, 1]
    assert as_labels("y", np.arange(8)[::2], 4, 7).tolist() == [0, 2, 4, 6]
    assert len(as_labels("y", np.empty(0, int), 0, 3)) == 0


def test_labels_that_another_thread_changes_are_refused_or_used_as_checked():
    """A thread writes 10**9 into the labels and takes it back, again and again: never is that an index."""
    y, stop = np.zeros(64, np.int64), threading.Event()
    logits = np.ones((64, 3))

    def disturb():
        while not stop.is_set():
            y[5] = 10**9
            y[5] = 0

    thread = threading.Thread(target=disturb, daemon=True)
    thread.start()
    try:
        for _ in range(300):
            try:
                loss = ops.cross_entropy(logits, y)
            except ValueError as error:
                assert str(error).startswith("labels must lie in [0, 3)")
            else:
                assert loss == pytest.approx(np.log(3))
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint64, ">i2", np.uint8])
def test_the_range_of_labels_in_every_integer_type(kind):
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    for value in {low, high} - {0}:
        with pytest.raises(ValueError, match=re.escape(f"y must lie in [0, 100), got values from {min(value, 1)} to")):
            as_labels("y", np.array([1, value], kind), 2, 100)


def test_as_float():
    x = np.arange(12.0).reshape(3, 4)
    assert as_float("x", x, ("N", 4)) is x
    for value in (x[:, ::2], x.T, x.astype(">f8"), np.frombuffer(b"\0" * 33, np.uint8)[1:].view(np.float64)):
        shape = value.shape
        got = as_float("x", value, shape)
        assert got.dtype == np.float64 and got.dtype.isnative and got.flags.c_contiguous and got.flags.aligned
        assert same_bits(got, np.ascontiguousarray(value, np.float64))
        assert any_float("x", value, shape) is value
    assert as_float("x", x, (3, "K"), np.dtype(np.float32)).dtype == np.float32


def test_as_vector_gives_the_same_memory():
    vector = np.zeros(5, np.float32)
    assert as_vector("v", vector, 5, vector.dtype) is vector
    plain = as_vector("v", vector.view(Liar), 5, vector.dtype, writable=True)
    assert type(plain) is np.ndarray and operator.eq(plain.ctypes.data, vector.ctypes.data)
