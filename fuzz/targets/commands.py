"""Command lines of every `cvit` command, in process, in a folder with a model, pictures, data and a run.

What must hold: no exception leaves `main`, the exit status is one of those in the help, and an error is one line.
Numbers that ask for real work (a million epochs, a batch of thousands) are left out: they would take what they say.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import tempfile
import warnings
from pathlib import Path
from random import Random

from cvit import set_num_threads
from cvit.cli import main
from cvit.formats.save import save

from .. import changes
from ..models_of import models
from ..running import Target
from .runs import DATA, _seed
from .tables import picture

COMMANDS = {  # how often each, as some take longer than others
    "train": 3, "eval": 10, "info": 20, "convert": 15, "predict": 15, "embed": 10, "plot": 1, "bench": 5,
}  # fmt: skip
OPTIONS: dict[str, tuple[str, ...]] = {
    "train": (
        "--init", "--preset", "--model", "--out", "--resume", "--overwrite", "--dry-run", "--validation", "--strict",
        "--epochs", "--batch-size", "--accumulate", "--lr", "--warmup", "--layer-decay", "--mixup", "--drop-path",
        "--ema", "--train-blocks", "--patience", "--seed", "--flip", "--rand-augment", "--erasing", "--image-size",
        "--patch-size", "--width", "--depth", "--heads", "--hidden", "--optimizer", "--freeze", "--precision",
        "--class-weight", "--checkpoint", "--decoders", "--cache-mb", "--save-minutes", "--threads",
    ),
    "eval": ("--part", "--csv", "--strict", "--decoders", "--batch-size", "--precision", "--threads"),
    "info": ("--batch", "--program", "--precision", "--threads"),
    "convert": ("--names", "--image-size", "--dtype", "--precision"),
    "predict": ("--top", "--json", "--csv", "--precision", "--threads"),
    "embed": ("--out", "--batch", "--decoders", "--strict", "--precision", "--threads"),
    "plot": ("--out", "--data", "--precision", "--threads"),
    "bench": ("--cases", "--tasks", "--vs", "--threads", "--rounds", "--precision", "--image", "--width", "--json"),
}  # fmt: skip
FLAGS = ("--resume", "--overwrite", "--dry-run", "--strict", "--program", "--help", "--version")
PATHS = (
    "m.safetensors", "vit", "photos", "photos/cat", "photos/cat/a.png", DATA, "run", "x.csv", "missing", "digits", ".",
    "", "empty", "broken.png", "new", "new/er", "new.npz", "new.npy", "new.csv", "new.onnx", "new.safetensors", "S/16",
    "\udcff", "fifo", "/dev/null", "photos/../m.safetensors", "a" * 300, "m.safetensors/x", "\0",
)  # fmt: skip
WORDS = (
    "f32", "f64", "bf16", "auto", "timm", "hf", "npz", "onnx", "cvit", "scratch", "finetune", "probe", "test", "train",
    "block", "adamw", "sgd", "balanced", "Ti/16", "S/0", "X/16", "rand-m9-mstd0.5-inc1", "rand-m", "head.*", "*", "[",
)  # fmt: skip
NUMBERS = (
    "0",
    "1",
    "2",
    "4",
    "8",
    "-1",
    "0.5",
    "1e-3",
    "nan",
    "inf",
    "1e999",
    "9" * 30,
    "9" * 5000,
    "0x10",
    "1_0",
    "٣",
)


@functools.cache
def _files() -> dict[str, bytes]:
    """The files of the folder, by their paths."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = models()[1]  # of one channel, with preprocessing and names
        save(folder / "m.safetensors", model)
        save(folder / "vit", models()[0], "timm")
        (folder / "x.csv").write_text("path,label\nphotos/cat/a.png,cat\nphotos/dog/b.png,dog\n")
        (folder / "broken.png").write_bytes(picture()[:50])
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found |= {f"photos/{name}.png": picture() + name.encode() for name in ("cat/a", "cat/c", "dog/b", "dog/d")}
    seed = _seed()
    found[DATA] = seed[DATA]
    return found | {f"run/{name}": data for name, data in seed.items() if name != DATA}


def make(rng: Random, folder: Path) -> None:
    """The folder, now and then with a damaged file."""
    broken = rng.choice(list(_files())) if rng.random() < 0.2 else ""
    for name, data in _files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(changes.damaged(rng, data) if name == broken else data)
    (folder / "empty").mkdir()
    os.mkfifo(folder / "fifo")


def arguments(rng: Random) -> list[str]:
    """A command line, mostly one that is read to its end."""
    if rng.random() < 0.03:
        return [rng.choice((*COMMANDS, *FLAGS, changes.text(rng))) for _ in range(rng.randrange(3))]
    (command,) = rng.choices(list(COMMANDS), list(COMMANDS.values()))
    line = [command]
    for _ in range({"train": 1, "info": 1, "bench": 0}.get(command, 2)):
        line.append(rng.choice(PATHS[:6]) if rng.random() < 0.7 else rng.choice(PATHS))
    if command == "embed" and rng.random() < 0.9:
        line += ["--out", rng.choice(("o.npz", "o.npy", "o.csv", rng.choice(PATHS)))]
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        flag = rng.choice(OPTIONS[command])
        line.append(flag)
        if flag not in FLAGS or rng.random() < 0.05:
            pool = rng.choice((PATHS, WORDS, NUMBERS))
            line.append(rng.choice(pool) if rng.random() < 0.97 else changes.text(rng))
    if command == "train":
        line += ["--epochs", "1", "--no-pictures", "--width", "8", "--depth", "1", "--heads", "2", "--patch-size", "4"]
        line += [] if "--out" in line else ["--out", "out"]
    if command == "bench":  # a run of it takes seconds: only what is refused
        line += ["--rounds", rng.choice(("0", "-1", "x"))]
    if rng.random() < 0.05:
        rng.shuffle(line)
    return line


def read(rng: Random, folder: Path) -> None:
    """The command; what must hold is asserted."""
    line = arguments(rng)
    set_num_threads(1)
    if "bench" in line[:1] and "--rounds" not in line:
        return
    os.chdir(folder)
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status = main(line)
    told = [text for text in error.getvalue().splitlines() if text.startswith("cvit: error:")]
    assert status in (0, 1, 2), f"{line} ended with {status}"
    assert (status == 2) == bool(told) and len(told) < 2, f"{line} ended with {status} and said {error.getvalue()!r}"
    assert "Traceback" not in error.getvalue(), line


TARGET = Target(make, read, ())
