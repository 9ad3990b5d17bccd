"""How many cores the tasks of a block feed, at most: the table in docs/architecture.md.

    python bench/task_model.py

A stage of n tasks of equal cost takes ceil(n / p) of them in a row on p cores. Costs are FLOPs; the tasks that pack weights, memory
bandwidth and barriers are left out.
"""

import math

from cvit._engine import Engine
from cvit.bench.cases import CASES, Case
from cvit.layout import Layout

FORWARD = ("qkv rows", "heads", "mlp rows")


def costs(config, batch):
    """FLOPs of one block's stages, by the names of `Engine.tasks`."""
    T, D, F = config.tokens, config.width, config.hidden
    R = batch * T
    qkv, attention, mlp = 6 * R * D * D, 2 * R * T * D, 2 * R * (D * D + 2 * D * F)
    return {
        "qkv rows": qkv, "heads": 2 * attention, "mlp rows": mlp, "mlp rows backward": mlp, "heads backward": 5 * attention,
        "qkv rows backward": qkv, "block gradients": 2 * R * (4 * D * D + 2 * D * F),
    }  # fmt: skip


def speed_up(costs, tasks, cores):
    time = sum(cost * math.ceil(tasks[stage] / cores) / tasks[stage] for stage, cost in costs.items())
    return sum(costs.values()) / time


def row(case, batch=None):
    config, batch = case.config, batch or case.batch
    tasks = Engine(config, Layout.of(config), batch, "float32", "train", dry=True).tasks
    tasks["block gradients"] -= config.norm_affine  # the small task that adds up the norms' parts
    training = costs(config, batch)
    forward = {stage: training[stage] for stage in FORWARD}
    columns = ("qkv rows", "heads", "heads backward", "block gradients", "pack qkv", "pack mlp")
    cells = [f"{case.name}, batch {batch}", *(str(tasks[name]) for name in columns)]
    cells.append(", ".join(f"{speed_up(training, tasks, cores):.1f}" for cores in (2, 8, 16, 64)))
    cells.append(", ".join(f"{speed_up(forward, tasks, cores):.1f}" for cores in (16, 64)))
    return "| " + " | ".join(cells) + " |"


def main():
    print(
        "| case | row blocks | heads | heads backward | gradient tiles | packing q, k, v | packing MLP "
        "| training step on 2, 8, 16, 64 cores | forward on 16, 64 |\n" + "|---" * 9 + "|"
    )
    for name in CASES:
        print(row(Case.named(name)))
    for name in ("ti16", "s16", "b16"):
        print(row(Case.named(name), batch=128))


if __name__ == "__main__":
    main()
