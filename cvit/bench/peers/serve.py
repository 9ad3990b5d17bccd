"""The loop that every benchmark worker runs: one JSON request a line on stdin, one JSON answer a line on stdout.

A worker is a script that any interpreter with NumPy and the framework in question can run; cvit need not be installed
there. It builds one model from given weights, says what that model computes, so that the caller can compare before it
times, and then runs and times as many steps as it is asked to.

request                                           answer
(none, at the start)                              name, version, tasks; or missing: a package that is not installed
load: config, file (.npz), tasks, optimizer, lr   precision: what it computes in; remark: on that, or nothing
check: logits, gradients (bools), steps           logits; loss, norms of the gradients by name; losses of the steps
steps: task, count, warmup                        times, seconds each
memory                                            imported, peak: resident bytes

An exception is answered as error: one line of text. The model is the benchmark's: pre-norm blocks, class token, biases,
norm scales and shifts, final norm, tanh GELU, mean softmax cross-entropy; weights have the names and (in, out) shapes
of cvit.layout.
"""

import argparse
import json
import os
import signal
import sys
import time
import traceback

import numpy as np


class Worker:
    """What a framework's worker fills in; the requests are answered by the `do_` methods."""

    name = "worker"
    tasks: tuple[str, ...] = ("train", "forward")
    imported: int  # resident bytes after the framework's import
    precision = "f32"  # "bf16": products of bfloat16 operands; set by `load` at the latest
    remark = ""

    def setup(self, threads, variant):
        """Import the framework, limit it to `threads` threads, return its version."""
        raise NotImplementedError

    def load(self, config, weights, images, labels, tasks, optimizer, lr):
        """Build the model from `weights` (name to float32 array) for images (N, C, H, W) and labels (N,).

        `optimizer` is "sgd" or "adamw", which has no weight decay and PyTorch's usual betas and eps.
        """
        raise NotImplementedError

    def logits(self):
        """Logits (N, classes) by the path that `forward_step` takes."""
        raise NotImplementedError

    def gradients(self):
        """Loss, and every gradient by the name of its weight in any shape, at the present weights."""
        raise NotImplementedError

    def forward_step(self):
        """One forward pass over the batch, done when it returns."""
        raise NotImplementedError

    def train_step(self):
        """One training step in place, done when it returns: forward, backward, update. Returns the loss before it."""
        raise NotImplementedError

    def do_load(self, config, file, tasks, optimizer, lr):
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        images, labels = arrays.pop("images"), arrays.pop("labels")
        self.load(config, arrays, images, labels, tasks, optimizer, lr)
        return {"precision": self.precision, "remark": self.remark}

    def do_check(self, logits, gradients, steps):
        answer = {}
        if logits:
            answer["logits"] = np.asarray(self.logits(), np.float64).tolist()
        if gradients:
            loss, grads = self.gradients()
            answer["loss"] = float(loss)
            answer["norms"] = {name: float(np.linalg.norm(grad)) for name, grad in grads.items()}
        if steps:
            answer["losses"] = [float(self.train_step()) for _ in range(steps)]
        return answer

    def do_steps(self, task, count, warmup):
        return {"times": self.timed({"train": self.train_step, "forward": self.forward_step}[task], count, warmup)}

    def timed(self, step, count, warmup):
        """Seconds of `count` calls of `step`, after `warmup` untimed ones."""
        for _ in range(warmup):
            step()
        times = []
        for _ in range(count):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        return times

    def do_memory(self):
        return {"imported": self.imported, "peak": resident("VmHWM")}


def resident(field):
    """Resident bytes of this process, VmRSS (now) or VmHWM (peak); the peak alone where there is no /proc.

    Not getrusage where it can be helped: Linux lets its peak begin with the parent's.
    """
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))
    except FileNotFoundError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def die_with_parent():
    """Ask Linux to kill this process when its parent dies: one that is stopped would not notice its pipe closing."""
    if sys.platform == "linux":
        import ctypes

        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def describe(error):
    """An exception on one line, with the line of the worker that it came through last."""
    here = os.path.dirname(os.path.abspath(__file__))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(here)]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})"


def confine(cpus):
    """Let this process run on these CPUs only, given as "0,1,2"; an empty text leaves them alone."""
    if cpus:
        os.sched_setaffinity(0, [int(cpu) for cpu in cpus.split(",")])


def serve(worker):
    """Answer requests until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--variant", default="")
    parser.add_argument("--cpus", default="")
    args = parser.parse_args()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle; it closes our stdin
    die_with_parent()
    confine(args.cpus)
    # Frameworks print to stdout now and then: answers get a stream of their own, stdout becomes stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**fields):
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        version = worker.setup(args.threads, args.variant)
    except ModuleNotFoundError as error:
        return answer(missing=error.name)
    except Exception as error:
        return answer(error=describe(error))
    worker.imported = resident("VmRSS")
    answer(name=worker.name, version=version, tasks=worker.tasks)

    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(**getattr(worker, "do_" + request.pop("do"))(**request))
        except Exception as error:
            answer(error=describe(error))
