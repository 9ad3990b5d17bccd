"""Minutes on a busy machine: everything of tests/busy.py in turn, in every precision, on few threads and on many.

    make long                                        # with the other long runs
    python tests/long/disturbed.py --minutes 5            # alone, with tests/ on the PYTHONPATH

Ends with an error where a round of training steps has other bits than an undisturbed one, or where threads hang.
"""

import argparse
import os
import random
import time

from busy import MODELS, crowded, half_a_cpu, move, stop_and_go, stop_one_thread, training


def stopped_threads(trained, draw):
    for _ in range(3):
        stop_one_thread(trained, draw.choice([0.01, 0.1, 1.0]), draw)


def within_half_a_cpu(trained, draw):
    with half_a_cpu(trained):
        time.sleep(draw.uniform(0.5, 3))


def behind_busy_loops(trained, draw):
    with crowded(trained):
        time.sleep(draw.uniform(0.5, 3))


def moved(trained, draw):
    move(trained, draw.uniform(0.5, 3), draw)


def stopped_and_going(trained, draw):
    stop_and_go(trained, draw.uniform(0.5, 3), draw)


def all_at_once(trained, draw):
    with half_a_cpu(trained), crowded(trained):
        stop_one_thread(trained, 0.3, draw)
        move(trained, 0.5, draw)
        stop_and_go(trained, 0.5, draw)


DISTURBANCES = (stopped_threads, within_half_a_cpu, behind_busy_loops, moved, stopped_and_going, all_at_once)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, cores = random.Random(args.seed), len(os.sched_getaffinity(0))
    end, runs, rounds, left_out = time.monotonic() + 60 * args.minutes, 0, 0, {}
    while time.monotonic() < end:
        disturb = DISTURBANCES[runs % len(DISTURBANCES)]
        model, precision = draw.choice(list(MODELS)), draw.choice(["f32", "f64", "bf16"])
        threads = draw.choice([1, 2, cores, 2 * cores + 1, 5 * cores, 33])
        options = [option for option in ("--timer", "--fork") if draw.random() < 0.3]
        with training(model, precision, threads, *options) as trained:
            try:
                disturb(trained, draw)
            except OSError as error:  # this user or container may not do that
                left_out[disturb.__name__] = str(error)
        runs, rounds = runs + 1, rounds + trained.rounds
        told = " ".join([f"{disturb.__name__}: {model}, {precision}, {threads} threads", *options])
        print(f"{runs:4} {told}: {trained.rounds} rounds of the same bits", flush=True)
    for name, error in left_out.items():
        print(f"left out: {name}: {error}")
    print(f"{runs} disturbed processes, {rounds} rounds of training steps, all of the same bits")


if __name__ == "__main__":
    main()
