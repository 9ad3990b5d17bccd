"""A run of whose ranks the last fails in the way that is told: what each says of it, and after how many seconds."""

import os
import signal
import subprocess
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
        if last and how in ("stop", "stop and leave"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if how == "pause":  # as by Ctrl-Z: while the clock goes on the last one is not waited for
            pids = [int(pid[0]) for pid in every.allgather(np.array([os.getpid()]))]
            if last:
                subprocess.Popen(["sh", "-c", f"sleep {2 * timeout}; kill -CONT {' '.join(map(str, pids))}"])
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
            every.barrier()
            print("all are here again")
        if how == "apart" and last:
            every.broadcast(None, "the checkpoint")
        for step in range(0 if how == "pause" else 10**6):  # short messages and long ones
            every.allgather(np.zeros(20000 * (step % 2)), "the gradient")
except (ranks.RankError, ValueError, SystemExit) as error:
    print(f"{type(error).__name__}: {error}")
    print(f"after {time.monotonic() - start:.2f} s, told {getattr(error, 'told', None)}, speaks {every.speaks()}")
    if how == "stop and leave":
        raise
    every.end(7)
