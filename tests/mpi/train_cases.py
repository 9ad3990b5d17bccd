"""Small trainings of every kind, as one process or several: what they end with, as checksums.

As a program, by all ranks: prints those of each kind that is given, "default 1" or "exact 2 split" for instance, a
reduction, a number of threads, and whether the optimizer's state is shared out.
"""

import json
import sys
import zlib

import numpy as np

import cvit
from cvit.data import ArrayFeed, Augmentation, Feed, Mixing, from_arrays
from cvit.data.augment import Affine
from cvit.engine import plan
from cvit.model.config import ViTConfig
from cvit.model.vit import ViT
from cvit.pictures.preprocessing import Preprocessing
from cvit.train import EMA, SGD, AdamW, fit

PARTS = 8
CONFIG = ViTConfig(image_size=8, patch_size=4, channels=1, width=8, depth=3, heads=2, hidden=16, classes=3)
SHARED = dict(  # settings of a run on pictures of 8 x 8
    image_size=8, patch_size=4, width=8, depth=2, heads=2, hidden=16, epochs=3, batch_size=16, pictures=False, seed=3,
    ema=0.9, drop_path=0.1, mixup=0.2,
)  # fmt: skip
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.normal(size=(37, 1, 8, 8)).astype(np.float32), RNG.integers(0, 3, 37)
TEST = RNG.normal(size=(11, 1, 8, 8)).astype(np.float32), RNG.integers(0, 3, 11)
BYTES = RNG.integers(0, 256, (37, 8, 8, 1), np.uint8)


def noise(images, rng):
    return images + rng.normal(size=images.shape).astype(np.float32)


def pictures():
    """A feed that moves, turns and mixes pictures."""
    how = Preprocessing.default(CONFIG.image_size, 1)
    augmentation = Augmentation(crop_scale=None, flip=0.5, erasing=0.3, affine=Affine())
    return Feed(
        from_arrays(BYTES, LABELS, validation=0).train, how, 13, augmentation=augmentation,
        mixing=Mixing(prob=0.7), seed=4,
    )  # fmt: skip


def momentum(model):
    return SGD(model, lr=0.05, momentum=0.9, weight_decay=0.01)


CASES = {  # batches of 13, 13 and 11 images: neither divides among the ranks, nor among the parts
    "plain": {},
    "few": dict(batch_size=3, epochs=1),  # fewer images than parts, and in the last batch than ranks
    "accumulate": dict(accumulate=2, class_weight="balanced", label_smoothing=0.1),
    "drop": dict(drop_path=0.3, dropout=0.2, optimizer=momentum, clip_norm=0.05),
    "mixing": dict(train=lambda: ArrayFeed(IMAGES, LABELS, 13, noise, mixing=Mixing(), seed=2, classes=3)),
    "pictures": dict(train=pictures, class_weight=[1, 2, 0.5]),
    "average": dict(augment=noise, ema=0.9, test=TEST, patience=2, epochs=4),
    "blocks": dict(trained=["blocks.1.*", "head.*"], epochs=4),
    "head": dict(trained=["head.*"], epochs=4, test=TEST),
    "little room": dict(trained=["blocks.1.*", "head.*"], epochs=3, cache_mb=0.004),
    "bf16": dict(precision="bf16", clip_norm=0.5),
    "batches": dict(train=lambda: [(IMAGES[:20], LABELS[:20]), (IMAGES[20:], LABELS[20:], np.arange(17.0))]),
}


def result(
    comm, train=None, epochs=2, optimizer=AdamW, ema=None, trained=None, test=None, precision="f32", **options
) -> str:
    """A training's weights, averages and figures. In bf16 each rank has another of this machine's instruction sets."""
    before = cvit.get_isa()
    if precision == "bf16" and comm is not None:
        cvit.set_isa(cvit.available_isas()[comm.Get_rank() % len(cvit.available_isas())])
    model = ViT(CONFIG, seed=0, precision=precision)
    model.weights[:] += 0.1 * np.random.default_rng(9).normal(size=model.layout.size).astype(np.float32)
    if trained is not None:
        options["optimizer"] = AdamW(model, lr=1e-2, trained=trained)
    else:
        options["optimizer"] = optimizer(model)
    average = None if ema is None else EMA(model, ema)
    data = (IMAGES, LABELS) if train is None else train()
    history = fit(model, data, test, **{"epochs": epochs, "batch_size": 13, "ema": average, "comm": comm, **options})
    cvit.set_isa(before)
    vectors = [model.weights, *([] if average is None else [average.weights])]
    figures = repr([tuple(map(float, epoch[:6])) for epoch in history.epochs]).encode()
    return " ".join(f"{zlib.crc32(data):08x}" for data in (*vectors, figures))


def results(comm, **options) -> dict[str, str]:
    return {name: result(comm, **case, **options) for name, case in CASES.items()}


if __name__ == "__main__":
    from mpi4py import MPI

    plan.THREAD_FLOPS = 1e-3  # share the passes of these small models out all the same
    found = {}
    for kind in sys.argv[1:]:
        reduction, threads, *split = kind.split()
        cvit.set_num_threads(int(threads))
        parts = PARTS if reduction == "exact" else None
        found[kind] = results(MPI.COMM_WORLD, exact_reduction=parts, split_optimizer=bool(split))
    print(json.dumps(found))
