"""cvit and its peers, each in a process of its own that is stopped whenever it is not its turn.

A process of its own, because the spinning threads of one runtime slow another; stopped (SIGSTOP) between its turns,
because some spin for a while after their work is done. See `serve.py` for what a worker is and answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from ...base.errors import check
from ..machine import pick_cpus

HERE = Path(__file__).parent

# name: (worker script, variant)
WORKERS = {
    "cvit": ("cvit_worker.py", "f32"),
    "numpy": ("numpy_worker.py", ""),
    "torch": ("torch_worker.py", ""),
    "torch-compile": ("torch_worker.py", "compile"),
    "torch-bf16": ("torch_worker.py", "bf16"),
    "torch-compile-bf16": ("torch_worker.py", "compile-bf16"),
    "jax": ("jax_worker.py", ""),
    "onnxruntime": ("onnxruntime_worker.py", ""),
    "openvino": ("openvino_worker.py", ""),
    "openvino-bf16": ("openvino_worker.py", "bf16"),
    "cvit-f32": ("cvit_worker.py", "f32"),
}
PEERS = tuple(name for name in WORKERS if name != "cvit")
OWN = ("cvit", "cvit-f32")  # no other framework

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def with_bfloat16(names) -> tuple[str, ...]:
    """The peers `names`, each followed by itself in bfloat16 where there is such a peer."""
    both = [part for name in names for part in (name, f"{name}-bf16") if part in WORKERS]
    return tuple(dict.fromkeys(both))


def environment() -> dict[str, str]:
    """Of a worker: this process's, but that a script finds `serve.py` beside it whatever Python is told here."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}


class NotInstalled(Exception):
    """The interpreter lacks a package that the peer needs."""


class WorkerError(Exception):
    """A worker answered with an error, or died."""


class Peer:
    """One worker process, running only while it is asked something. Leaving its `with` block ends it.

    `version` and `tasks` are what the worker said of itself, `precision` what it really computes in once it has loaded
    a case. Raises `NotInstalled` or `WorkerError`.
    """

    precision = "f32"

    def __init__(
        self,
        name: str,
        threads: int,
        python: str | None = None,
        package: Path = HERE.parents[2],
        variant: str | None = None,
    ):
        """Start worker `name` with `threads` threads under the interpreter `python` (default: this one).

        cvit's worker takes the package in the folder `package`: the one this file belongs to, not another that happens
        to be installed. `variant` takes the place of the worker's own: of cvit's it is the precision.
        """
        check(name in WORKERS, f"peer must be one of {', '.join(WORKERS)}, got {name!r}")
        script, usual = WORKERS[name]
        variant = usual if variant is None else variant
        command = [python or sys.executable, str(HERE / script), f"--threads={threads}", f"--variant={variant}"]
        # With fewer threads than CPUs, no runtime gets at the other CPUs, whatever it makes of its settings.
        command.append("--cpus=" + ",".join(map(str, pick_cpus(threads))))
        variables = environment() | dict.fromkeys(THREAD_VARIABLES, str(threads))
        if name in OWN:
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package), variables.get("PYTHONPATH")]))
        self.name, self.threads = name, threads
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (close() closes it)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=variables,
                encoding="utf-8",
            )  # fmt: skip
        except OSError as error:
            self._log.close()
            raise WorkerError(f"{name}: cannot run {command[0]}: {error.strerror}") from None
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        try:
            hello = self._answer()
            if "missing" in hello:
                raise NotInstalled(f"{name}: no package {hello['missing']}")
        except BaseException:
            self.close()
            raise
        self.version, self.tasks = hello["version"], hello["tasks"]

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def ask(self, do: str, **fields) -> dict:
        """Send a request, wait for its answer."""
        self._continue()
        try:
            self._requests.write(json.dumps({"do": do, **fields}) + "\n")
            self._requests.flush()
        except BrokenPipeError:
            pass  # it died; what it said last is more telling
        return self._answer()

    def _answer(self) -> dict:
        line = self._answers.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            last_words = self._log.read().decode(errors="replace").strip().splitlines()[-5:]
            status = self._process.returncode
            raise WorkerError(f"{self.name}: worker ended with status {status}\n" + "\n".join(last_words))
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        if hasattr(signal, "SIGSTOP"):
            self._process.send_signal(signal.SIGSTOP)
        return answer

    def _continue(self):
        if hasattr(signal, "SIGCONT"):
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process: politely, so that it can end what it started itself, then for good."""
        self._continue()
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._log.close()
