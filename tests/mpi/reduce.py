"""Sums of gradients over real ranks. Prints a digest for each sum whose bits must not depend on the number of ranks."""

import hashlib

import numpy as np
from reductions import followed, one_by_one, part_gradients, summed

import cvit
from cvit import ViT, ViTConfig
from cvit.engine.plan import Progress
from cvit.parallel import ranks, reduction
from cvit.parallel.reduction import Reduction
from cvit.parallel.shares import part_slices
from cvit.parallel.transfers import allgather_weights

every = ranks.world(timeout=30)
rank, size = every.rank, every.size


def digest(array):
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


def check_vectors(length, parts, images, dtype, least, most):
    """Two steps, one right after the other, against the tree in NumPy."""
    reduction.LEAST_VALUES, reduction.MOST_VALUES = least, most
    third = length // 3
    pieces = [slice(third, length - 1), *([slice(0, third)] if third else []), slice(length - 1, length)]
    one = Reduction(every, pieces, length, dtype, parts)
    pace = np.random.default_rng(rank)
    for step in range(2):
        gradients = part_gradients(parts, length, dtype, seed=step)
        expected, out = summed(gradients, images), np.full(length, np.nan, dtype)
        one_by_one(one, pieces, gradients, images, out)
        assert out.tobytes() == expected.tobytes(), (length, parts, images, dtype, step)
        if one.overlaps:
            out = np.full(length, np.nan, dtype)
            followed(one, pieces, gradients, images, out, rank, pace)
            assert out.tobytes() == expected.tobytes(), (length, parts, images, dtype, step)


for parts, length, images, dtype in (
    (size, 2, 100, np.float64), (size, 70, 2, np.float32), (9, 70, 3, np.float32), (size, 1000, 1, np.float32),
    (9, 30_000, 100, np.float64), (size, 30_000, 100, np.float32),
):  # fmt: skip
    check_vectors(length, parts, images, dtype, 1, max(500, length // 3))
check_vectors(1_000_000, size, 100, np.float32, 1, 10**6)  # too large to be sent before it is received

# A model's gradient: part by part, and while the backward runs.
reduction.LEAST_VALUES, reduction.MOST_VALUES = 1, 4000
config = ViTConfig(image_size=12, patch_size=4, width=48, depth=4, heads=3, hidden=100, classes=5, layer_scale=0.3)
rng = np.random.default_rng(0)
x, y = rng.standard_normal((12, 3, 12, 12)).astype(np.float32), rng.integers(5, size=12)
model = ViT(config, seed=1)
for parts in dict.fromkeys((8, size)):
    for first in (None, 2):
        slices, pieces = part_slices(len(x), parts), model.layout.pieces(first)
        one, trained = Reduction(every, pieces, model.layout.size, model.dtype, parts), min(p.start for p in pieces)
        for threads in (1, 2):
            cvit.set_num_threads(threads)

            def gradient(part, out, progress=None):
                share, own = np.full(slices[part].stop - slices[part].start, 1 / len(x)), slices[part]
                model.loss_and_grad(x[own], y[own], sample_weight=share, first=first, out=out, progress=progress)

            grad = np.zeros(model.layout.size, np.float32)
            for part, room in one.own(len(x), grad):
                gradient(part, room)
            one.finish(len(x), grad)
            if parts == 8:
                print(f"gradient from {first}: {digest(grad[trained:])}")
            if one.overlaps:
                again, progress = np.zeros_like(grad), Progress()
                one.start(again, progress, len(x))
                gradient(rank, again, progress)
                one.wait()
                assert again.tobytes() == grad.tobytes()
            assert not grad[:trained].any()
            _, whole = model.loss_and_grad(x, y, first=first)
            assert np.abs(grad - whole).max() < 1e-5 * np.abs(whole).max()

# Weights, each rank's share to all.
for length in (1, 5, 300_000):
    slices, weights = part_slices(length, size), np.full(length, -1.0)
    weights[slices[rank]] = np.arange(length)[slices[rank]]
    for _ in range(2):
        allgather_weights(every, weights, slices)
    assert np.array_equal(weights, np.arange(length))
every.barrier()
