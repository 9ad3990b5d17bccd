"""A reduction whose last rank fails in its second step, by an exception or by standing still: what the others say."""

import os
import signal
import sys
import time

import numpy as np

from cvit.parallel import ranks, reduction
from cvit.parallel.reduction import Reduction

how, timeout = sys.argv[1], float(sys.argv[2])
reduction.LEAST_VALUES = 1
every = ranks.world(timeout=timeout)
last = every.rank == every.size - 1
sums = Reduction(every, [slice(1000, 100_000), slice(0, 1000)], 100_000, np.float32, every.size)
grad = np.ones(100_000, np.float32)
start = time.monotonic()
try:
    with every.guarded():
        for step in range(2):
            sums.start(grad, lambda: 1)
            time.sleep(0.01)  # messages of the first piece are under way
            if last and step and how == "raise":
                sums.stop()
                raise ValueError("nothing there")
            if last and step:
                os.kill(os.getpid(), signal.SIGSTOP)
            sums.wait()
            assert (grad == every.size ** (step + 1)).all()
except (ranks.RankError, ValueError) as error:
    print(f"{type(error).__name__}: {error}")
    print(f"after {time.monotonic() - start:.2f} s")
    every.end(7)
