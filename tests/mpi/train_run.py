"""A run of `cvit.fit` by all ranks: PATH FOLDER KIND RANK STEP. At that step of its own this rank raises a
KeyboardInterrupt (KIND "stop") or a ValueError ("raise"). A folder that has been begun is resumed. Prints what became
of it."""

import json
import os
import sys
import time
from pathlib import Path

from mpi4py import MPI
from train_cases import PARTS, SHARED

import cvit

path, folder, kind, rank, last = sys.argv[1:]
done = 0


def on_step(step):
    global done
    done += 1
    if done == int(last) and MPI.COMM_WORLD.Get_rank() == int(rank):
        raise KeyboardInterrupt if kind == "stop" else ValueError("this rank has had enough")


options = dict(resume=True, pictures=False) if MPI.COMM_WORLD.bcast(os.path.exists(folder)) else SHARED
try:
    run = cvit.fit(
        path, out=folder, comm=MPI.COMM_WORLD, exact_reduction=PARTS, split_optimizer=True, on_step=on_step, **options
    )
except Exception as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    Path(f"told-{MPI.COMM_WORLD.Get_rank()}").touch()
    while len(list(Path().glob("told-*"))) < MPI.COMM_WORLD.Get_size():  # the first to end takes the others with it
        time.sleep(0.05)
    MPI.COMM_WORLD.Abort(2)
print(json.dumps(dict(interrupted=run.history.interrupted, steps=done)))
