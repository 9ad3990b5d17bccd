"""A run of whose ranks the last fails in the way that is told: what each says, after how many seconds, and how it ends."""

import os
import signal
import sys
import time

import numpy as np

from cvit.parallel import ranks

how, timeout = sys.argv[1], float(sys.argv[2])
every = ranks.world(timeout=timeout)
last = every.rank == every.size - 1
every.barrier()
start = time.monotonic()
try:
    with every.guarded():
        if how == "all":
            raise ValueError("nothing there")
        if last and how == "raise":
            time.sleep(0.2)
            raise ValueError("nothing\nthere " + 2000 * "ä")
        if last and how == "exit":
            raise SystemExit(3)
        if last and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if last and how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if how == "apart" and last:
            every.broadcast(None, "the checkpoint")
        for step in range(10**6):  # long messages and short ones, to ranks that are well and to the one that is not
            every.allgather(np.zeros(20000 * (step % 2)), "the gradient")
except (ranks.RankError, ValueError, SystemExit) as error:
    print(f"{type(error).__name__}: {error}")
    print(f"after {time.monotonic() - start:.2f} s, told {getattr(error, 'told', None)}, speaks {every.speaks()}")
    every.end(7)
