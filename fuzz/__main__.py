"""`python -m fuzz`: run cases of all targets for a while, and print how many, and what was found.

Each target runs in a process of its own, so that one which is killed, or kills itself, costs one case. The exit status
is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .running import WAIT, Finding, choices, failure, limit_memory, prepare_process, run_many, scratch
from .targets import NAMES, target_of

SILENT = 3 * WAIT  # seconds without a new case after which a process is killed
ENVIRONMENT = {  # of the processes: as little address space as may be beside what is read, and no network
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "agg",
}  # fmt: skip


def main() -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Attack everything that cvit reads.")
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together (default 60)")
    parser.add_argument("--targets", default=",".join(NAMES), help=f"which of {','.join(NAMES)} (default all)")
    parser.add_argument("--first", type=int, default=0, help="number of each target's first case (default 0)")
    parser.add_argument("--case", nargs=2, metavar=("TARGET", "NUMBER"), help="run one case again, and say all of it")
    parser.add_argument("--guided", nargs=argparse.REMAINDER, metavar="TARGET", help="TARGET and options of libFuzzer")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)  # target, first case, end, descriptor
    args = parser.parse_args()
    if args.child:
        name, first, end, progress = args.child
        run_many(name, target_of(name), int(first), float(end), int(progress))
        return 0
    if args.guided:
        from .guided import guide

        return guide(args.guided[0], args.guided[1:])
    if args.case:
        return _again(args.case[0], int(args.case[1]))
    names = args.targets.split(",")
    end, found = time.time() + args.seconds, False
    for number, name in enumerate(names):
        now = time.time()
        cases, findings = _attack(name, args.first, now + (end - now) / (len(names) - number))
        print(f"{name:<16}{cases:>12,} cases{len(findings):>6} findings", flush=True)
        for finding in findings:
            print(f"  {finding.kind} at {finding.where}: python -m fuzz --case {name} {finding.case}", flush=True)
        found = found or bool(findings)
    return int(found)


def _attack(name: str, first: int, end: float) -> tuple[int, list[Finding]]:
    """Run cases of one target until `end`: how many, and one finding of each kind and place."""
    findings: dict[tuple[str, str], Finding] = {}
    number = first
    with tempfile.TemporaryFile() as progress, tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as errors:
        while time.time() < end:
            os.pwrite(progress.fileno(), number.to_bytes(8, "little"), 0)
            command = [sys.executable, "-X", "faulthandler", "-m", "fuzz", "--child", name, str(number), str(end)]
            child = subprocess.Popen(
                [*command, str(progress.fileno())], env=os.environ | ENVIRONMENT, pass_fds=[progress.fileno()],
                stdin=subprocess.DEVNULL, stdout=told, stderr=errors,
            )  # fmt: skip
            hung = _wait(child, progress.fileno())
            number = _number(progress.fileno())
            if child.returncode == 0:
                break
            how = "hang" if hung else signal.Signals(-child.returncode).name if child.returncode < 0 else "exit"
            errors.seek(0)
            text = errors.read()[-3000:].decode(errors="replace")
            findings.setdefault((how, text[-200:]), Finding(how, "the process", text, number))
            if how == "exit" and number == first:  # it does not even begin
                print(text, file=sys.stderr)
                break
            number += 1
        told.seek(0)
        for line in told:
            finding = Finding(*json.loads(line))
            findings.setdefault(finding.signature, finding)
    return number - first, list(findings.values())


def _wait(child: subprocess.Popen, progress: int) -> bool:
    """Wait until a process ends; whether it had to be killed, as it began no new case for long."""
    last, since = -1, time.time()
    while True:
        try:
            child.wait(0.2)
            return False
        except subprocess.TimeoutExpired:
            number = _number(progress)
            if number != last:
                last, since = number, time.time()
            if time.time() - since > SILENT:
                child.kill()
                child.wait()
                return True


def _number(progress: int) -> int:
    return int.from_bytes(os.pread(progress, 8, 0), "little")


def _again(name: str, number: int) -> int:
    """Run one case in this process and print what it comes to."""
    os.environ.update(ENVIRONMENT)
    target = target_of(name)
    prepare_process()
    with scratch() as place:
        folder = Path(place, "a", "b")
        folder.mkdir(parents=True)
        limit_memory()
        failed = failure(target, choices(name, number), folder)
    print("passed" if failed is None else "\n".join(failed))
    return int(failed is not None)


if __name__ == "__main__":
    sys.exit(main())
