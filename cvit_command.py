"""The entry point of the command `cvit`, outside the package: importing anything of `cvit` imports NumPy and kernels.

A Ctrl-C in that tenth of a second ends the process as it ends any other program, without a traceback; afterwards
`cvit.cli.signals` says what a signal does.
"""

import signal


def main() -> int:
    """Import the command and run it; the exit status."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # not where SIGINT is ignored, as in a shell's background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from cvit.cli import start

    return start()
