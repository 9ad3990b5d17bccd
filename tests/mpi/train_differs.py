"""A training whose ranks differ in data, settings or weights, or whose loss is not finite: prints what each raises."""

import sys

import numpy as np
from mpi4py import MPI
from train_cases import CONFIG, IMAGES, LABELS

import cvit
from cvit.model.vit import ViT
from cvit.parallel.ranks import RankError
from cvit.train import fit

kind, last = sys.argv[1], MPI.COMM_WORLD.Get_rank() == MPI.COMM_WORLD.Get_size() - 1
model, images, epochs = ViT(CONFIG, seed=0), IMAGES.copy(), 1


calls = 0


def spoilt(batch, rng):
    global calls
    calls += 1
    if kind == "nan" and calls == 2:
        batch[15] = np.nan
    return batch


if last and kind == "data":
    images[3, 0, 1, 1] += 1
if last and kind == "settings":
    epochs = 2
if last and kind == "isa":
    cvit.set_isa(next(isa for isa in cvit.available_isas() if isa != cvit.get_isa()))
if last and kind == "weights":
    model.weights[3] += 1
before = model.weights.copy()
try:
    fit(model, (images, LABELS), epochs=epochs, batch_size=16, augment=spoilt, comm=MPI.COMM_WORLD)
except (ValueError, FloatingPointError, RankError) as error:
    print(f"{type(error).__name__}: {error}")
if kind != "nan":
    assert np.array_equal(model.weights, before)
