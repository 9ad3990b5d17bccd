"""The command as a process, for tests of what it prints, how it stops and what it leaves behind."""

import signal
import subprocess
import sys

COMMAND = [sys.executable, "-m", "cvit"]
TINY = ["--width", "8", "--depth", "1", "--heads", "2", "--hidden", "8"]


def start(*arguments, stdout=subprocess.PIPE, before=lambda: None, command=COMMAND):
    """The command as a process in which `before()` was called first."""

    def prepare():  # signals may be ignored where the tests run, in a shell's background say, and a child inherits that
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        before()

    command = [*command, *map(str, arguments)]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, preexec_fn=prepare)


def wait_for(process, begin):
    """Read the process's output up to the line that begins so."""
    while not process.stdout.readline().startswith(begin):
        assert process.poll() is None


def end(process):
    """Exit status and what is on stderr; standard output is left alone."""
    errors = process.stderr.read()
    process.stderr.close()
    return process.wait(timeout=120), errors
