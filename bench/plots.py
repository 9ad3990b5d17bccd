"""Draw the benchmark's plots from the JSON files of `cvit bench`; needs matplotlib.

    python bench/plots.py --kernels KERNELS.json --cases CASES.json ... --out bench/plots

KERNELS.json comes from `cvit bench --kernels`, CASES.json (one or several) from `cvit bench --vs torch,…`. Writes
roofline.png (each kernel's speed over its arithmetic intensity, under the machine's two roofs) and pytorch.png (times
of cvit and its peers over the size of the model).
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from cvit.base.files import replacing


def roofline(data):
    """FLOP/s of every kernel over its FLOPs per byte."""
    threads = str(data["machine"]["threads"])
    peak, bandwidth = data["peak"][threads] / 1e9, data["bandwidth"][threads] / 1e9
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    groups = {}
    for entry in data["kernels"]:
        groups.setdefault(entry["kind"], []).append((entry["flops"] / entry["bytes"], entry["flops_per_s"] / 1e9))
    intensities = [x for points in groups.values() for x, _ in points]
    low, high, ridge = min(intensities) / 2, max(intensities) * 2, peak / bandwidth
    axes.plot([low, ridge, max(high, ridge)], [low * bandwidth, peak, peak], color="black", linewidth=1)
    kernels = list(dict.fromkeys(kind.removesuffix(" backward") for kind in groups))
    for kind, points in groups.items():
        color = f"C{kernels.index(kind.removesuffix(' backward'))}"
        face = "none" if kind.endswith("backward") else color
        axes.plot(*zip(*points), "o", markersize=6, color=color, markerfacecolor=face, label=kind)
    axes.annotate(f"{peak:.0f} GFLOP/s", (max(high, ridge), 1.02 * peak), ha="right", va="bottom")
    axes.annotate(f"{bandwidth:.0f} GB/s ", (1.3 * low, 1.3 * low * bandwidth), ha="right", va="bottom")
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte", ylabel="GFLOP/s", title=_machine(data))
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    return figure


def against_pytorch(*runs):
    """Time per image of training step and forward pass over the model's FLOPs per image, for everyone measured."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    for axes, task in zip(figure.subplots(1, 2), ("train", "forward")):
        lines = {}
        for entry in (entry for data in runs for entry in data["cases"]):
            if entry["task"] == task:
                point = (entry["flops"] / entry["batch"] / 1e9, 1e3 * entry["seconds"] / entry["batch"], entry["case"])
                lines.setdefault(entry["who"], {})[entry["case"]] = point  # the last file counts
        for who, points in lines.items():
            x, y, names = zip(*sorted(points.values()))
            style = dict(linewidth=2.5, zorder=3) if who == "cvit" else dict(linewidth=1)
            axes.plot(x, y, "o-", markersize=4, label=who, **style)
            if who == "cvit":
                for position in zip(x, y, names):
                    axes.annotate(position[2], position[:2], xytext=(4, -10), textcoords="offset points", fontsize=8)
        title = "training step" if task == "train" else "forward pass"
        axes.set(xscale="log", yscale="log", xlabel="GFLOP per image", ylabel="ms per image", title=title)
        axes.grid(alpha=0.3)
        if lines:
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(_machine(runs[0]), fontsize=10)
    return figure


def _machine(data):
    machine = data["machine"]
    return f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=Path, nargs=1, default=[], help="JSON of cvit bench --kernels")
    parser.add_argument("--cases", type=Path, nargs="+", default=[], help="JSON of cvit bench --vs torch")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "plots", help="folder for the PNG files")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for files, draw, name in ((args.kernels, roofline, "roofline"), (args.cases, against_pytorch, "pytorch")):
        if files:
            target = args.out / f"{name}.png"
            figure = draw(*(json.loads(file.read_text(encoding="utf-8")) for file in files))
            with replacing(target) as temporary:
                figure.savefig(temporary, format="png", dpi=150)
            print(f"wrote {target}")


if __name__ == "__main__":
    main()
