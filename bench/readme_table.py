"""Put the measured table into README.md, between its two markers:

    python bench/readme_table.py bench/results/FILE.json ...

A FILE is what `cvit bench --vs torch,jax,onnxruntime,openvino --json FILE` wrote; several, if the cases were run one
after another. A case that is in several is taken from the last. With `--precision bf16` a case is one of its own, and
PyTorch is what is faster, PyTorch in float32 or in bfloat16.
"""

import argparse
import json
import sys
from pathlib import Path

from cvit.base.files import replacing

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
HEADINGS = (
    "case", "training step", "images/s", "of the peak", "against PyTorch", "forward", "images/s", "of the peak",
    "against the fastest peer",
)  # fmt: skip
NAMES = {"torch": "PyTorch", "torch-compile": "compiled PyTorch", "jax": "JAX", "onnxruntime": "ONNX Runtime",
         "openvino": "OpenVINO", "numpy": "NumPy"}  # fmt: skip
OWN = ("cvit", "cvit-f32")  # no other framework


def precision_of(data):
    """What cvit computed in, in a benchmark's JSON; before there were precisions float32."""
    return data.get("precision", "f32")


def name_of(who):
    """A peer as the table calls it."""
    base = who.removesuffix("-bf16")
    if base not in NAMES:
        sys.exit(f"readme_table.py has no name for the peer {who!r}; it knows {', '.join(NAMES)}, also with -bf16")
    return NAMES[base] + (" in bfloat16" if who != base else "")


def rows(data):
    """One row of cells for every case in `data`, a benchmark's JSON."""
    entries = {}
    for entry in data["cases"]:
        entries.setdefault(entry["case"], {})[entry["task"], entry["who"]] = entry
    for case, found in entries.items():
        cells = [f"{case}, batch {next(iter(found.values()))['batch']}"]
        if precision_of(data) != "f32":
            cells[0] += f", {precision_of(data)}"
        for task in ("train", "forward"):
            own = found.get((task, "cvit"))
            if own is None:
                cells += [""] * 4
                continue
            # The peak may have been measured higher after this entry was written.
            share = own["flops_per_s"] / data["peak"][str(own["threads"])]
            ms = 1e3 * own["seconds"]
            digits = 2 if ms < 10 else 1 if ms < 100 else 0
            cells += [f"{ms:.{digits}f} ms", f"{own['images_per_s']:,.0f}", f"{share:.0%}"]
            peers = {who: entry["ratio"] for (kind, who), entry in found.items() if kind == task and who not in OWN}
            if task == "train":
                peers = {who: ratio for who, ratio in peers.items() if who in ("torch", "torch-bf16")}
            fastest = min(peers, key=peers.get, default=None)
            named = f" ({name_of(fastest)})" if fastest and (task, fastest) != ("train", "torch") else ""
            cells.append(f"{peers[fastest]:.2f}×{named}" if fastest else "")
        yield cells


def table(runs):
    """The table and the line about its machine, as Markdown."""
    machine, entries = runs[0]["machine"], [entry for data in runs for entry in data["cases"]]
    peaks = {}  # of each kind, as they were measured
    for data in runs:
        peak = data["peak"][str(data["machine"]["threads"])]
        peaks.setdefault(data.get("peak_of", "float32 FMA"), {})[f"{peak / 1e9:.0f}"] = None
    versions = {entry["who"].removesuffix("-bf16"): entry["version"] for entry in entries if entry["who"] not in OWN}
    peers = ", ".join(f"{name_of(who)} {version}" for who, version in versions.items())
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += [
        "| " + " | ".join(cells) + " |" for cells in {cells[0]: cells for data in runs for cells in rows(data)}.values()
    ]
    lines += [
        "",
        f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}; "
        + ", ".join(f"{kind.removesuffix(' FMA')} peak {' and '.join(found)} GFLOP/s" for kind, found in peaks.items())
        + f", measured in the same run. cvit {machine['cvit']}{f' against {peers}' if peers else ''}. "
        + ", ".join(f"`{data['command']}`" for data in runs),
    ]
    return "\n".join(lines)


def insert(text, new):
    """`text` with what stands between the markers replaced by `new`."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"README.md needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--readme", type=Path, default=Path(__file__).resolve().parents[1] / "README.md")
    args = parser.parse_args()
    text = insert(
        args.readme.read_text(encoding="utf-8"),
        table([json.loads(file.read_text(encoding="utf-8")) for file in args.files]),
    )
    with replacing(args.readme) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
