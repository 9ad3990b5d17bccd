"""`cvit bench`: how fast this machine runs cvit, against what it could do and against other frameworks.

machine.py   what the machine is            peers/       one process each for cvit, PyTorch, JAX, …
cases.py     what is run                    lineup.py    a case loaded by all, checked, then timed in turns
sections.py  the tables                     kernels.py   single kernels against their roofline
report.py    text and JSON

Everything is checked before it is timed: models against a NumPy implementation in a process of its own (logits, losses,
gradients), kernels against NumPy. FLOPs are those of GEMMs and attention products; a training step counts as three
forward passes. Shares of the peak refer to the peak measured in the same run.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex

from ..base.errors import check
from ..base.files import check_writable
from ..model.precision import dtype_of, resolved
from .cases import CASES, TASKS, Case
from .lineup import Settings, start
from .machine import describe
from .peers import PEERS, NotInstalled, WorkerError, with_bfloat16
from .report import Report

MOST_THREADS = 4096
PRECISIONS = ("f32", "bf16", "bf16-fast", "auto")
OPTIMIZERS = ("sgd", "adamw")

# Flags that change a field of the cases: (flag, field, help)
_FIELDS = (
    ("--patch", "patch_size", "side of a patch"),
    ("--channels", "channels", "channels of an image"),
    ("--width", "width", "token width"),
    ("--heads", "heads", "attention heads"),
    ("--hidden", "hidden", "width of the MLP's hidden layer"),
    ("--depth", "depth", "number of blocks"),
    ("--classes", "classes", "number of classes"),
    ("--batch", "batch", "images in a batch"),
)

# Sections that a flag asks for: (name, cases it runs if none are named, help)
_SECTIONS = (
    ("latency", ("ti16", "s16", "b16"), "forward pass of one image on 1 and 2 threads, p50 and p99"),
    ("kernels", ("digits", "ti16", "b16"), "the kernels one by one, each against its roofline"),
    ("long", ("ti16",), "one image from 224 to 1024 pixels"),
    ("scaling", ("ti16", "s16", "b16"), "1, 2, … threads"),
    ("busy", ("digits", "cifar-s", "ti16"), "the training step beside busy loops on all cores"),
    ("memory", ("ti16", "s16", "b16"), "resident memory of a process that trains with AdamW"),
    ("overhead", ("digits",), "what a training step costs beside its kernels"),
)


def names(known):
    """A parser of comma-separated names out of `known`."""

    def parse(text):
        names = tuple(dict.fromkeys(filter(None, (part.strip() for part in text.split(",")))))
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(f"choose from {','.join(known)}, got {text!r}")
        return names

    return parse


def _size(text):
    """An image size, "224" or "224x160"."""
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"must be a size like 224 or 224x160, got {text!r}")
    numbers = tuple(map(int, parts))
    return numbers * 2 if len(numbers) == 1 else numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to `parser`."""
    add = parser.add_argument
    add("--cases", type=names(CASES), metavar="NAMES", help=f"which of {','.join(CASES)} (default: all)")
    add("--tasks", type=names(TASKS), default=TASKS, metavar="NAMES", help="which of train,forward (default: both)")
    add("--vs", type=names(PEERS), default=(), metavar="PEERS", help=f"compare with any of {','.join(PEERS)}")
    add("--peer-python", metavar="PYTHON", help="interpreter that has the peers installed (default: this one)")
    add("--threads", type=int, metavar="N", help="threads of everyone (default: what cvit would use)")
    add("--rounds", type=int, metavar="N", help="rounds, of which the median counts (default: 7)")
    add("--seconds", type=float, metavar="S", help="length of one worker's turn in a round (default: 0.5)")
    add(
        "--precision",
        choices=PRECISIONS,
        default="f32",
        help="what cvit computes in; in bf16 peers run in float32 and in their bfloat16 (default: f32)",
    )
    add("--optimizer", choices=OPTIMIZERS, help="of the training step (default: sgd; in bf16 adamw)")
    add("--quick", action="store_true", help="2 short rounds of the small cases: does it work?")
    add("--json", metavar="FILE", help="write everything there, too")
    sections = parser.add_argument_group("instead of training step and forward pass of the cases")
    for name, _, text in _SECTIONS:
        sections.add_argument(f"--{name}", action="store_true", help=text)
    fields = parser.add_argument_group("a model of your own: change these in the cases named, or in ti16")
    fields.add_argument("--image", type=_size, metavar="SIZE", help="pixels, 224 or 224x160 (height x width)")
    for flag, _, text in _FIELDS:
        fields.add_argument(flag, type=int, metavar="N", help=text)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark that `args` describe; the exit status, 1 if anything failed.

    Arguments that do not fit together are a `ValueError` before anything is started.
    """
    from .. import get_num_threads

    settings = _settings(args, get_num_threads())
    wanted = [name for name, _, _ in _SECTIONS if getattr(args, name)] or ["cases"]
    chosen = {name: _chosen(args, name) for name in wanted}
    report = Report()
    try:
        _run_sections(report, settings, chosen)
    finally:
        if args.json and report.data:  # written before anything is printed, which may fail
            report.data["command"] = _command(args)
            report.write(args.json)
            report.line(f"\nwrote {args.json}")
        report.status("")
    return 1 if report.faults else 0


def _settings(args, default_threads: int) -> Settings:
    threads = default_threads if args.threads is None else args.threads
    rounds = args.rounds if args.rounds is not None else 2 if args.quick else 7
    seconds = args.seconds if args.seconds is not None else 0.05 if args.quick else 0.5
    check(threads >= 1, f"--threads must be at least 1, got {threads}")
    check(threads <= MOST_THREADS, f"--threads must be at most {MOST_THREADS}, got {threads}")
    check(rounds >= 1, f"--rounds must be at least 1, got {rounds}")
    check(0 < seconds <= 600, f"--seconds must be above 0 and at most 600, got {seconds}")
    if args.json:
        try:
            check_writable(args.json)
        except OSError as error:
            raise ValueError(f"--json: {error.filename}: {error.strerror}") from None
    precision = resolved(args.precision, dtype_of(args.precision))
    half = precision != "f32"
    check(not (half and args.kernels), f"--kernels measures float32 alone, got --precision {precision}")
    peers = with_bfloat16(args.vs) if half else args.vs
    optimizer = args.optimizer or ("adamw" if half else "sgd")
    return Settings(threads, peers, args.peer_python, args.tasks, rounds, seconds, precision, optimizer)


def _chosen(args, section: str) -> list[Case]:
    """The cases of a section, with the fields changed that flags change."""
    changes = {field: value for flag, field, _ in _FIELDS if (value := getattr(args, flag[2:])) is not None}
    if args.image:
        changes["image_size"] = args.image
    names = args.cases
    if names is None:
        defaults = {name: cases for name, cases, _ in _SECTIONS}.get(section, tuple(CASES))
        names = ("ti16",) if changes else ("digits", "cifar-s") if args.quick else defaults
    return [Case.named(name, **changes) for name in names]


def _run_sections(report: Report, settings: Settings, chosen: dict[str, list[Case]]) -> None:
    """Measure the machine, then run each section."""
    from . import kernels, sections

    limits = sections.Limits(report, seconds=min(1.0, 2 * settings.seconds))
    report.data["machine"] = describe(settings.threads)
    report.data["date"] = datetime.date.today().isoformat()
    report.data["precision"] = settings.precision
    report.data["settings"] = {
        "rounds": settings.rounds, "seconds": settings.seconds, "optimizer": settings.optimizer
    }  # fmt: skip
    # These grow with the run: tables use the best peak seen so far, the file ends up with the best of all.
    report.data["peak"], report.data["bandwidth"] = limits.peak, limits.bandwidth
    report.status("measuring peak and bandwidth")
    try:
        with start("cvit", settings.threads, settings) as worker:
            limits.measure_peak(worker, settings.threads)
            limits.measure_bandwidth(worker, settings.threads)
    except (WorkerError, NotInstalled) as error:
        report.fault(str(error))
        return
    _heading(report, limits, settings)
    bench = sections.Bench(settings, report, limits)
    parts = {
        "cases": sections.cases, "latency": sections.latency, "kernels": kernels.kernels,
        "long": sections.long_sequences, "scaling": sections.scaling, "busy": sections.busy, "memory": sections.memory,
        "overhead": sections.overhead,
    }  # fmt: skip
    for name, cases in chosen.items():
        parts[name](bench, cases)


def _heading(report: Report, limits, settings: Settings) -> None:
    """Print what the machine is and what it can do."""
    machine, threads = report.data["machine"], settings.threads
    machine["isa"], report.data["peak_of"] = limits.isa, limits.peak_of
    sizes = ", ".join(f"{level} {size // 1024} kB" for level, size in machine["caches"].items())
    for label, text in (
        ("CPU", f"{machine['cpu']}, {machine['cpus']} CPUs usable" + (f"; {sizes}" if sizes else "")),
        ("ISA", limits.isa),
        ("threads", threads),
        ("precision", settings.precision),
        ("bfloat16", _bfloat16(machine["bfloat16"])),
        ("peak", f"{limits.peak[threads] / 1e9:.1f} GFLOP/s {limits.peak_of}, measured"),
        ("bandwidth", f"{limits.bandwidth[threads] / 1e9:.1f} GB/s, measured"),
        ("versions", f"cvit {machine['cvit']}, NumPy {machine['numpy']}, Python {machine['python']}"),
    ):
        report.line(f"{label:<10} {text}")
    if machine["load"] and machine["load"] > 0.5:
        report.line(f"{'':<10} other programs are running here (load {machine['load']:.1f}): expect poorer numbers")


def _bfloat16(instructions: list[str] | None) -> str:
    """What there is of it in this CPU."""
    if instructions is None:
        return "unknown: the system does not tell the CPU's instructions"
    return ", ".join(instructions) or "no instructions for it in this CPU: whoever computes in it uses float32's"


def _command(args) -> str:
    """The command as one would type it again, without folders of this machine."""
    words = ["cvit", "bench"]
    for name, value in vars(args).items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif name in ("json", "peer_python") and value:
            words += [flag, os.path.basename(value)]
        elif isinstance(value, tuple) and value and value != TASKS:
            words += [flag, ("x" if name == "image" else ",").join(map(str, value))]
        elif name in ("precision", "optimizer") and value not in (None, "f32"):
            words += [flag, value]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            words += [flag, str(value)]
    return shlex.join(words)
