"""On how many machines a training step still pays: a model, not a measurement.

    python bench/nodes.py                                              the tables of docs/performance.md
    python bench/nodes.py --cases b16 --batch 64 --speed 12 --memory 1e11     another machine as a node

A node computes as the machine of bench/results does, `--speed` times as fast. The gradient is summed as
`cvit/parallel/reduction.py` does it: a piece, as soon as it is final, is cut into as many segments as there are
nodes; every node sends each owner its segment, the owner adds them up and sends the sum to all. Some pieces are under
way at a time, behind the backward of the blocks in front: only what does not fit behind it makes the step longer.

Left out: nodes of different speed, switches that are shared with others, the core that the exchange takes from the
step, and the pictures' way to the node. So what the model says is the most that can be had.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from pathlib import Path

from cvit.bench import names
from cvit.bench.cases import Case
from cvit.model.layout import Layout
from cvit.parallel.exchange import IN_FLIGHT
from cvit.parallel.reduction import POLL_SECONDS, sized

RESULTS = Path(__file__).parent / "results"
RECORDED = {"ti16": "cases-ti16.json", "s16": "cases-s16-b16.json", "b16": "cases-s16-b16.json"}
NODES = (2, 4, 8, 16, 64, 256, 1024)
WANTED = (0.8, 0.5)  # efficiencies of the table of least batches
MOST_IMAGES = 4096  # a batch on a node beyond which nobody looks
SGD, ADAMW, ADD = 12, 28, 12  # bytes that memory moves for each weight, in an update and in the sum of two gradients


@dataclasses.dataclass(frozen=True)
class Network:
    """`latency` in seconds from program to program, `bandwidth` in bytes/s each way, and the seconds that a core takes
    to post a message and to see its end."""

    name: str
    latency: float
    bandwidth: float
    message: float


NETWORKS = (
    Network("10 GbE, TCP", 25e-6, 0.875e9, 12e-6),  # 70 % of the line, see docs/performance.md
    Network("100 GbE, RoCE", 4e-6, 11e9, 5e-6),
    Network("InfiniBand HDR", 1.5e-6, 24e9, 5e-6),
    Network("InfiniBand NDR", 1.5e-6, 48e9, 5e-6),
)


@dataclasses.dataclass(frozen=True)
class Node:
    """A machine: `speed` times the measured one's, and the bytes/s of its memory."""

    speed: float
    memory: float


@dataclasses.dataclass(frozen=True)
class Work:
    """A case on the measured machine: seconds an image."""

    case: str
    forward: float
    backward: float

    @classmethod
    def recorded(cls, case: str) -> Work:
        """From the files of bench/results: a training step with SGD, a third of which, but for the update, is the
        forward pass."""
        found = json.loads((RESULTS / RECORDED[case]).read_text())
        [row] = [
            row for row in found["cases"] if (row["case"], row["task"], row["who"]) == (case, "train", "cvit")
        ]  # fmt: skip
        update = SGD * weights_of(case) / found["bandwidth"][str(row["threads"])]
        image = (row["seconds"] - update) / row["batch"]
        return cls(case, image / 3, image * 2 / 3)


def weights_of(case: str) -> int:
    return Layout.of(Case.named(case).config).size


@functools.cache
def pieces_of(case: str, nodes: int) -> tuple[tuple[float, int], ...]:
    """The pieces of a case's gradient in float32: the share of the backward after which each is final, and bytes."""
    layout = Layout.of(Case.named(case).config)
    depth = layout.config.depth
    pieces = sized(layout.pieces(), nodes)
    return tuple((min(needed, depth) / depth, 4 * (piece.stop - piece.start)) for needed, piece in pieces)


def step(work: Work, node: Node, network: Network, nodes: int, images: int) -> float:
    """Seconds of a training step of `images` pictures on each of `nodes` nodes, with AdamW."""
    forward, backward = images * work.forward / node.speed, images * work.backward / node.speed
    update = ADAMW * weights_of(work.case) / node.memory
    if nodes == 1:
        return forward + backward + update
    others = nodes - 1
    posts = 2 * others * network.message  # of a phase: as many messages come as go
    free, ends = 0.0, []  # when the next piece can set out, and when each is everywhere
    for share, size in pieces_of(work.case, nodes):
        wire = size * others / nodes / network.bandwidth
        added = ADD * size / 4 * others / nodes / node.memory
        start = max(forward + backward * share, free, ends[-IN_FLIGHT] if len(ends) >= IN_FLIGHT else 0.0)
        busy = max(2 * wire, 2 * posts + added)  # there and back: the network's time, or the thread's that sees to it
        looks = POLL_SECONDS if start < forward + backward else 0.0  # two phases, each seen half of it late
        free = start + busy
        ends.append(free + 2 * network.latency + looks)
    told = network.latency + posts  # every rank's loss, and who wants to stop
    return max(forward + backward, *ends) + told + update


def efficiency(work: Work, node: Node, network: Network, nodes: int, images: int) -> float:
    """A step's time on one node over that on `nodes`, which go through as many times more pictures in it."""
    return step(work, node, network, 1, images) / step(work, node, network, nodes, images)


def least_images(work: Work, node: Node, network: Network, nodes: int, wanted: float) -> int | None:
    """The fewest pictures a node with which the efficiency is as wanted, None for more than `MOST_IMAGES`."""
    enough = (
        images for images in range(1, MOST_IMAGES + 1) if efficiency(work, node, network, nodes, images) >= wanted
    )
    return next(enough, None)


def steps_table(work: Work, node: Node, images: int) -> str:
    """For each number of nodes and each network the step, the pictures a second of all nodes, and the efficiency."""
    rows = []
    for nodes in (1, *NODES):
        cells = []
        for network in NETWORKS:
            seconds = step(work, node, network, nodes, images)
            share = efficiency(work, node, network, nodes, images)
            cells.append(f"{1e3 * seconds:,.0f} ms, {nodes * images / seconds:,.0f}/s, {share:.0%}".replace("%", " %"))
        rows.append([f"{nodes:,}", *cells])
    return table(["nodes", *(network.name for network in NETWORKS)], rows)


def least_table(work: Work, node: Node) -> str:
    """For each number of nodes and each network the fewest pictures a node for the efficiencies of `WANTED`."""
    rows = []
    for nodes in NODES:
        cells = []
        for network in NETWORKS:
            found = [least_images(work, node, network, nodes, wanted) for wanted in WANTED]
            cells.append(" / ".join(f"> {MOST_IMAGES:,}" if least is None else f"{least:,}" for least in found))
        rows.append([f"{nodes:,}", *cells])
    return table(["nodes", *(network.name for network in NETWORKS)], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cases", type=names(RECORDED), default=("b16", "ti16"), metavar="NAMES", help=f"of {','.join(RECORDED)}")
    add("--batch", type=int, default=32, metavar="INT", help="pictures a node in a step (default: 32)")
    speed = "of a node, in those of the measured machine of two cores (default: 24, 64 cores of which 48 count)"
    add("--speed", type=float, default=24, metavar="FLOAT", help=speed)
    memory = "bytes/s of a node's memory (default: 2e11, eight channels of DDR4-3200)"
    add("--memory", type=float, default=200e9, metavar="FLOAT", help=memory)
    args = parser.parse_args()
    if min(args.batch, args.speed, args.memory) <= 0:
        parser.error("--batch, --speed and --memory must be above 0")
    node = Node(args.speed, args.memory)
    for case in args.cases:
        work = Work.recorded(case)
        size = 4 * weights_of(case)
        print(
            f"\n{case}: {size / 1e6:,.0f} MB of gradient in {len(pieces_of(case, 2))} pieces between 2 nodes, "
            f"{len(pieces_of(case, NODES[-1]))} between {NODES[-1]:,}; {args.batch} pictures a node\n"
        )
        print(steps_table(work, node, args.batch))
        print(f"\n{case}: fewest pictures a node for {' / '.join(f'{w:.0%}' for w in WANTED)}\n".replace("%", " %"))
        print(least_table(work, node))


if __name__ == "__main__":
    main()
