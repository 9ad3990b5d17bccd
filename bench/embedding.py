"""The same embedding job three ways: `cvit embed`, timm with torch, transformers with torch.

    python bench/embedding.py [--model S/16] [--images 128] [--rounds 3] [--json FILE]

A folder of JPEGs of 500 x 375 is embedded by a model of random weights, which each library reads from a folder in its
own names. Every run is a whole process, started anew, in turn; all use the same number of threads. Of each: images/s
between the first and the last picture, the time to the result of a single picture, the most memory that the process
took, and what its packages take on the disk. All must give the same features. timm decodes in one worker beside the
model, as its users do; transformers in the loop, as its documentation does.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TIMM = """
import sys
import numpy as np
import cvit.families.census.peers
import timm, torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

class Pictures(torch.utils.data.Dataset):
    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, i):
        return self.transform(Image.open(self.paths[i]).convert("RGB"))

folder, out, threads, batch, *paths = sys.argv[1:]
torch.set_num_threads(int(threads))
model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
transform = create_transform(**resolve_model_data_config(model), is_training=False)
loader = torch.utils.data.DataLoader(Pictures(paths, transform), batch_size=int(batch), num_workers=len(paths) > 1)
with torch.inference_mode():
    np.save(out, np.concatenate([model(x).numpy() for x in loader]))
"""
TRANSFORMERS = """
import sys
import numpy as np
import cvit.families.census.peers
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

folder, out, threads, batch, *paths = sys.argv[1:]
torch.set_num_threads(int(threads))
processor, model = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
found = []
with torch.inference_mode():
    for i in range(0, len(paths), int(batch)):
        pictures = [Image.open(path).convert("RGB") for path in paths[i : i + int(batch)]]
        found.append(model(**processor(images=pictures, return_tensors="pt")).last_hidden_state[:, 0].numpy())
np.save(out, np.concatenate(found))
"""


def write_pictures(folder: Path, count: int) -> list[str]:
    """Smooth colours with noise, which compress as photographs do."""
    from PIL import Image

    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        noisy = np.clip(np.asarray(coarse, np.int16) + rng.normal(0, 6, (375, 500, 3)), 0, 255)
        paths.append(str(folder / f"{i:05}.jpg"))
        Image.fromarray(noisy.astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def run(command: list[str], threads: int) -> tuple[float, float]:
    """Seconds of a whole process, and the most memory that it took, in MB."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{command[:4]} failed: {errors.decode()[-2000:]}")
    return seconds, usage.ru_maxrss / 1024


def speed(model, x, seconds: float = 3.0) -> float:
    """Images/s of the bare forward."""
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        model.features(x)
        calls += 1
    return calls * len(x) / (time.perf_counter() - start)


def installed_megabytes(packages: list[str]) -> float:
    """What these packages and all that they require take on the disk."""
    wanted, seen, total = list(packages), set(), 0
    while wanted:
        name = _normal(wanted.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if name in map(_normal, packages):  # what is not installed cannot be measured, and nothing is not its size
                return math.nan
            continue  # a requirement of another system
        total += sum(path.stat().st_size for file in package.files or [] if (path := Path(file.locate())).is_file())
        needs = [need for need in package.requires or [] if "extra ==" not in need]
        wanted += [re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in needs]
    return total / 1e6


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="S/16")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    args = parser.parse_args()

    import cvit

    threads = cvit.get_num_threads()
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        (folder / "photos").mkdir()
        (folder / "one").mkdir()
        paths = write_pictures(folder / "photos", args.images)
        os.link(paths[0], folder / "one" / "0.jpg")
        config = cvit.ViTConfig.variant(args.model, classes=0, activation="gelu_erf")
        how = cvit.Preprocessing.from_hf({"image_processor_type": "ViTImageProcessor"})
        model = cvit.ViT(config, preprocessing=how)
        for names in ("hf", "timm"):
            model.save(folder / names, names=names)
        common = [str(threads), str(args.batch)]
        jobs = {
            "cvit embed": lambda photos, out: [
                sys.executable, "-m", "cvit", "embed", str(folder / "hf"), str(photos), "--out", str(out),
                "--batch", str(args.batch),
            ],
            "timm + torch": lambda photos, out: [
                sys.executable, "-c", TIMM, str(folder / "timm"), str(out), *common,
                *map(str, sorted(photos.iterdir())),
            ],
            "transformers + torch": lambda photos, out: [
                sys.executable, "-c", TRANSFORMERS, str(folder / "hf"), str(out), *common,
                *map(str, sorted(photos.iterdir())),
            ],
        }  # fmt: skip
        times = {name: {"one": [], "photos": [], "memory": []} for name in jobs}
        x, bare = model.preprocess(paths[: args.batch]), []
        model.freeze().features(x)
        for _ in range(args.rounds):
            bare.append(speed(model, x))
            for name, command in jobs.items():
                for photos in ("one", "photos"):
                    seconds, memory = run(command(folder / photos, folder / f"{name}-{photos}.npy"), threads)
                    times[name][photos].append(seconds)
                times[name]["memory"].append(memory)
        features = {name: np.load(folder / f"{name}-photos.npy") for name in jobs}

    first = features["cvit embed"]
    packages = {
        "cvit embed": ["cvit-cpu", "pillow"],
        "timm + torch": ["torch", "timm", "torchvision", "pillow"],
        "transformers + torch": ["torch", "transformers", "torchvision", "pillow"],
    }
    rows = []
    for name, found in times.items():
        one, all_ = statistics.median(found["one"]), statistics.median(found["photos"])
        off = np.abs(features[name] - first).max() / np.abs(first).max()
        rows.append(
            dict(
                job=name, images_per_second=(args.images - 1) / (all_ - one), first_result_s=one,
                memory_mb=max(found["memory"]), installed_mb=installed_megabytes(packages[name]), off=float(off),
            )
        )  # fmt: skip
    print(f"{args.images} JPEGs of 500 x 375, ViT-{args.model}, {threads} threads, batch {args.batch}")
    print("| | images/s | first result after | memory | installed |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['job']} | {row['images_per_second']:.1f} | {row['first_result_s']:.1f} s "
            f"| {row['memory_mb']:.0f} MB | {row['installed_mb']:.0f} MB |"
        )
        if row["off"] > 1e-2:  # transformers' processor may resize otherwise than Pillow
            print(f"  {row['job']} differs by {row['off']:.1e}")
    print(f"bare forward of a frozen model: {statistics.median(bare):.1f} images/s")
    if args.json:
        Path(args.json).write_text(json.dumps(dict(rows=rows, bare=bare, threads=threads), indent=1) + "\n")


if __name__ == "__main__":
    main()
