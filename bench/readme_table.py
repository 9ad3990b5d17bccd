"""Put the measured table into README.md, between its two markers:

    python bench/readme_table.py bench/results/FILE.json ...

A FILE is what `cvit bench --vs torch,jax,onnxruntime,openvino --json FILE` wrote; several, if the cases were run one
after another. A case that is in several is taken from the last.
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


def rows(data):
    """One row of cells for every case in `data`, a benchmark's JSON."""
    entries = {}
    for entry in data["cases"]:
        entries.setdefault(entry["case"], {})[entry["task"], entry["who"]] = entry
    for case, found in entries.items():
        cells = [f"{case}, batch {next(iter(found.values()))['batch']}"]
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
            peers = {who: entry["ratio"] for (kind, who), entry in found.items() if kind == task and who != "cvit"}
            if task == "train":
                cells.append(f"{peers['torch']:.2f}×" if "torch" in peers else "")
            else:
                fastest = min(peers, key=peers.get, default=None)
                cells.append(f"{peers[fastest]:.2f}× ({NAMES[fastest]})" if fastest else "")
        yield cells


def table(runs):
    """The table and the line about its machine, as Markdown."""
    machine, entries = runs[0]["machine"], [entry for data in runs for entry in data["cases"]]
    peaks = [f"{data['peak'][str(data['machine']['threads'])] / 1e9:.0f}" for data in runs]
    versions = {entry["who"]: entry["version"] for entry in entries if entry["who"] != "cvit"}
    peers = ", ".join(f"{NAMES[who]} {version}" for who, version in versions.items())
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += [
        "| " + " | ".join(cells) + " |" for cells in {cells[0]: cells for data in runs for cells in rows(data)}.values()
    ]
    lines += [
        "",
        f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}; float32 peak "
        f"{' and '.join(dict.fromkeys(peaks))} "
        f"GFLOP/s, measured in the same run. cvit {machine['cvit']}{f' against {peers}' if peers else ''}. "
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
