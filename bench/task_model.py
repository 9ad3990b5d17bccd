"""How many cores the tasks of a block feed, at most: the table in docs/architecture.md.

    python bench/task_model.py

Tasks that share a stage are dealt out one after the other, the largest first, each to the core that is free first.
Costs are FLOPs; the tasks that pack weights, memory bandwidth and barriers are left out. Tasks are cut anew for each
number of threads.
"""

import heapq

import cvit
from cvit.bench.cases import CASES, Case
from cvit.engine.plan import Plan
from cvit.model.program import program_of

CORES = (2, 8, 16, 64)


def stages(config, batch, tasks):
    """A block's stages, forward and then backward: of each kind of tasks in a stage (FLOPs, how many)."""
    T, D, F = config.tokens, config.width, config.hidden
    R, rows = batch * T, tasks["rows"]
    qkv, attention, mlp = 6 * R * D * D, 2 * R * T * D, 2 * R * (D * D + 2 * D * F)
    gradients = [(mlp, tasks["mlp gradients"]), (qkv, tasks["qkv gradients"])]
    if tasks["whole blocks"]:
        return [[(qkv + 2 * attention + mlp, rows)]], [[(mlp + 5 * attention + qkv, rows)], gradients]
    forward = [[(qkv, rows)], [(2 * attention, tasks["heads"])], [(mlp, rows)]]
    back = [[(mlp, rows)], [gradients[0], (5 * attention, tasks["heads backward"])], [(qkv, rows)], gradients[1:]]
    return forward, back


def tasks_of_a_block(config, batch):
    """How many tasks the first block's stages have, by kind."""
    plan = Plan(program_of(config), batch, "float32", "train", dry=True)
    of_block = [(name, count) for stage in plan.stages() for name, layer, count in stage if layer == 0]
    mlp, qkv = (
        count - config.norm_affine for name, count in of_block if name == "weight gradients"
    )  # less the norms' sums
    counts = dict(of_block)
    whole = counts.get("block", 0)
    return {
        "whole blocks": whole,
        "rows": whole or counts["rows before attention"],
        "heads": counts.get("heads", 0),
        "heads backward": counts.get("heads backward", 0),
        "mlp gradients": mlp,
        "qkv gradients": qkv,
    }


def time(stage, cores):
    """Of a stage, in FLOPs of one core."""
    free = [0.0] * cores
    for cost in sorted((cost / count for cost, count in stage for _ in range(count)), reverse=True):
        heapq.heapreplace(free, free[0] + cost)
    return max(free)


def speed_up(stages, cores):
    return sum(cost for stage in stages for cost, _ in stage) / sum(time(stage, cores) for stage in stages)


def row(case, batch=None):
    config, batch = case.config, batch or case.batch
    cells, training, forward = [], [], []
    for cores in CORES:
        cvit.set_num_threads(cores)
        tasks = tasks_of_a_block(config, batch)
        once, back = stages(config, batch, tasks)
        training.append(f"{speed_up(once + back, cores):.1f}")
        forward.append(f"{speed_up(once, cores):.1f}")
        cells.append("/".join(str(tasks[name]) for name in ("rows", "mlp gradients", "qkv gradients")))
    both = (f"{case.name}, batch {batch}", cells[0], cells[-1], str(tasks["heads"]), str(tasks["heads backward"]))
    return "| " + " | ".join((*both, ", ".join(training), ", ".join(forward))) + " |"


def main():
    print(
        "| case | row blocks / tiles of dW, MLP / q k v: on 2 cores | on 64 | heads, on 64 | heads backward "
        "| training step on 2, 8, 16, 64 cores | forward |\n" + "|---" * 7 + "|"
    )
    for name in CASES:
        print(row(Case.named(name)))
    for name in ("ti16", "s16", "b16"):
        print(row(Case.named(name), batch=128))


if __name__ == "__main__":
    main()
