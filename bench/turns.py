"""Passes of several builds of cvit in turns: what a change gains.

    git worktree add ../before HEAD~1 && (cd ../before && python setup.py -q build_clib build_ext --inplace)
    python bench/turns.py ../before . --cases ti16,s16 --threads 1

Each folder holds a cvit built in place. Each build runs in a process of its own that is stopped when it is not its
turn; in a round every build takes one short turn and the probe of the peak another. Neighbours of a shared machine come
and go within seconds, and short turns put all builds into the same moments: the median of the rounds' ratios counts,
and the best rounds tell of quiet moments. `--restarts` starts the processes anew, since where a process's memory comes
to lie makes a percent or two.
"""

import argparse
import contextlib
import statistics
import tempfile
from pathlib import Path

from cvit.bench import PRECISIONS, names
from cvit.bench.cases import CASES, TASKS, Case
from cvit.bench.lineup import TOLERANCES, compare, load, reference, steps_for, take_turn
from cvit.bench.peers import Peer


def race(case, task, folders, threads, seconds, turn, precision):
    """Peaks, and of each build its FLOP/s, round by round."""
    peaks, speeds = [], [[] for _ in folders]
    with contextlib.ExitStack() as stack:
        file = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cvit-bench-"))) / "case.npz"
        case.write_arrays(file)
        expected = reference(case, True, threads)
        builds = [stack.enter_context(Peer("cvit", threads, package=path, variant=precision)) for path in folders]
        for folder, build in zip(folders, builds):
            load(build, case, file, TASKS)
            train = "losses" in expected
            found = build.ask("check", logits=True, gradients=train, steps=2 * train)
            compare(str(folder), found, expected, TOLERANCES[precision])
        count = steps_for(builds[0], task, turn)
        for _ in range(max(2, round(seconds / (turn * (1 + 1.1 * len(builds)))))):
            peaks.append(builds[0].ask("peak", seconds=min(turn, 0.02))["peak"])
            for speed, build in zip(speeds, builds):
                times = take_turn(build, task, count)
                speed.append(case.flops(task) * len(times) / sum(times))
    return peaks, speeds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folders", type=lambda text: Path(text).resolve(), nargs="+", help="of the builds; ratios are to the first")
    add(
        "--cases",
        type=names(CASES),
        default=("digits", "cifar-s", "ti16", "s16"),
        metavar="NAMES",
        help=f"which of {','.join(CASES)}",
    )
    add("--tasks", type=names(TASKS), default=TASKS, metavar="NAMES", help="which of train,forward")
    add("--threads", type=int, default=1, help="threads (default: 1)")
    add("--precision", choices=PRECISIONS[:-1], default="f32", help="what all builds compute in (default: f32)")
    add("--seconds", type=float, default=30, help="for each case and task (default: 30)")
    add("--turn", type=float, default=0.05, help="length of a turn, one step at least (default: 0.05)")
    add("--depth", type=int, help="number of blocks, to have shorter turns")
    add("--restarts", type=int, default=3, help="times that the processes are started (default: 3)")
    args = parser.parse_args()
    for folder in args.folders:
        if not (folder / "cvit" / "__init__.py").is_file():
            parser.error(f"there is no cvit in {folder}")
    if min(args.threads, args.restarts, args.seconds, args.turn, 1 if args.depth is None else args.depth) <= 0:
        parser.error("--threads, --restarts, --seconds, --turn and --depth must be above 0")
    for name in args.cases:
        case = Case.named(name, **({"depth": args.depth} if args.depth is not None else {}))
        for task in args.tasks:
            peaks, speeds = [], [[] for _ in args.folders]
            for _ in range(args.restarts):
                seconds = args.seconds / args.restarts
                more_peaks, more = race(case, task, args.folders, args.threads, seconds, args.turn, args.precision)
                peaks += more_peaks
                for speed, new in zip(speeds, more):
                    speed += new
            peak = max(peaks)
            print(
                f"{case.name} {task}, {len(peaks)} rounds; "
                f"peak {peak / 1e9:.0f} GFLOP/s, median {statistics.median(peaks) / 1e9:.0f}"
            )
            for folder, speed in zip(args.folders, speeds):
                ratios = sorted(own / first for own, first in zip(speed, speeds[0]))
                quarter = len(ratios) // 4
                print(
                    f"  {folder.name:20} median {statistics.median(speed) / peak:4.0%} of the peak, "
                    f"best {max(speed) / peak:4.0%}; "
                    f"ratio {statistics.median(ratios):.3f} ({ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
