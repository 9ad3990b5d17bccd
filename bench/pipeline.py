"""What the input pipeline costs: epochs of training on JPEG files, beside the same steps on a batch that is there.

    python bench/pipeline.py [--pictures 384] [--rounds 5] [--augmentation finetune] [--decoders 1] [--json FILE]

Random smooth pictures of 500 x 375 are written as JPEGs to a temporary folder. In a round a ViT-Ti/16 is trained for an
epoch through `Feed`, which decodes, augments and mixes ahead, and then for as many steps on one batch that stays in
memory; which of the two comes first changes from round to round. An epoch's time is from the call of `Feed.epoch` to
the end of the last step: the first batch, which nothing can hide, is part of it. The pipeline's cost is the median of
the rounds' ratios, less one. The pipeline alone, emptied as fast as it fills, tells how far it is from its limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import cvit
from cvit.bench.cases import Case
from cvit.bench.machine import cpu_name
from cvit.data import Augmentation, Cache, Feed, Mixing, find

HEIGHT, WIDTH, QUALITY = 375, 500, 90
AUGMENTATIONS = {
    "none": None,
    "finetune": Augmentation(crop_scale=(0.5, 1.0), color_jitter=0.0, erasing=0.0),
    "deit": Augmentation(rand_augment="rand-m9-mstd0.5-inc1"),
}


def write_pictures(folder: Path, count: int, classes: int) -> None:
    """JPEGs of about the size that photographs of these pixels have: smooth shapes under a little noise."""
    from PIL import Image

    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + rng.normal(0, 6, smooth.shape)
        path = folder / f"{number % classes:03}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)


class Trainer:
    """Steps of a model with AdamW."""

    def __init__(self, case: Case):
        self.model = cvit.ViT(case.config, seed=0)
        self.optimizer = cvit.AdamW(self.model, lr=1e-4)
        self.grad = np.empty(self.model.weights.size, self.model.dtype)

    def step(self, images, targets) -> None:
        """One training step."""
        self.model.loss_and_grad(images, targets, out=self.grad)
        self.optimizer.step(self.model.weights, self.grad)


def epoch(trainer: Trainer | None, feed: Feed, number: int) -> float:
    """Seconds of an epoch through the feed; without a trainer, of the feed alone."""
    start = time.perf_counter()
    for batch in feed.epoch(number):
        if trainer is not None:
            trainer.step(batch.images, batch.targets)
    return time.perf_counter() - start


def fixed(trainer: Trainer, batches: list) -> float:
    """Seconds of the same steps on batches that are there."""
    start = time.perf_counter()
    for batch in batches:
        trainer.step(batch.images, batch.targets)
    return time.perf_counter() - start


def measure(args, folder: Path) -> dict:
    """All times, in seconds, and what follows from them."""
    case = Case.named("ti16", depth=args.depth, image_size=args.image_size, classes=args.classes)
    write_pictures(folder, args.pictures, args.classes)
    pictures = find(folder, validation=0).train
    how = cvit.Preprocessing.default(args.image_size)
    feed = Feed(
        pictures, how, args.batch, augmentation=AUGMENTATIONS[args.augmentation],
        mixing=Mixing() if args.mixing else None, decoders=args.decoders, cache=Cache(args.cache_mb << 20),
    )  # fmt: skip
    trainer = Trainer(case)
    first = next(feed.epoch(0))
    last = feed.images - (feed.steps - 1) * feed.batch_size
    batches = [first] * (feed.steps - 1) + [first._replace(images=first.images[:last], targets=first.targets[:last])]
    epoch(trainer, feed, 0)  # fills the cache of files, and plans
    times: dict[str, list[float]] = {"feed": [], "fixed": [], "alone": []}
    for number in range(1, args.rounds + 1):
        for name in ("feed", "fixed") if number % 2 else ("fixed", "feed"):
            times[name].append(epoch(trainer, feed, number) if name == "feed" else fixed(trainer, batches))
        times["alone"].append(epoch(None, feed, number))
    ratios = [own / bare for own, bare in zip(times["feed"], times["fixed"])]
    size = statistics.mean(path.stat().st_size for path in pictures.source.paths)
    return {
        "machine": cpu_name(), "threads": cvit.get_num_threads(), "isa": cvit.get_isa(), "options": vars(args),
        "bytes_per_picture": size, "seconds": times, "cost": statistics.median(ratios) - 1,
        "costs": sorted(ratio - 1 for ratio in ratios),
    }  # fmt: skip


def show(result: dict) -> None:
    """The table."""
    options = result["options"]
    print(
        f"{result['machine']}, {result['isa']}, {result['threads']} threads; {options['pictures']} JPEGs of {WIDTH} x "
        f"{HEIGHT}, {result['bytes_per_picture'] / 1000:.0f} kB each; {options['augmentation']}, {options['decoders']} "
        f"decoders, batches of {options['batch']}, {options['rounds']} rounds"
    )
    print(f"{'':28}{'s an epoch':>12}{'pictures/s':>12}")
    for name, words in (("fixed", "steps on a batch in memory"), ("feed", "epochs through the feed"),
                        ("alone", "the feed alone")):  # fmt: skip
        seconds = statistics.median(result["seconds"][name])
        print(f"{words:28}{seconds:12.3f}{options['pictures'] / seconds:12.1f}")
    costs = result["costs"]
    print(f"the pipeline costs {result['cost']:.1%} of the steps (rounds from {costs[0]:.1%} to {costs[-1]:.1%})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pictures", type=int, default=384, help="of an epoch (default: 384)")
    add("--rounds", type=int, default=5, help="epochs of each kind (default: 5)")
    add("--batch", type=int, default=32, help="batch size (default: 32)")
    add("--augmentation", choices=AUGMENTATIONS, default="finetune", help="(default: finetune)")
    add("--mixing", action="store_true", help="with mixup and cutmix")
    add("--decoders", type=int, default=1, help="threads that decode (default: 1)")
    add("--cache-mb", type=int, default=0, help="MiB of decoded pictures that are kept (default: 0)")
    add("--threads", type=int, help="threads of the model (default: as cvit chooses)")
    add("--classes", type=int, default=10, help="(default: 10)")
    add("--depth", type=int, default=12, help="blocks of the model (default: 12)")
    add("--image-size", type=int, default=224, help="(default: 224)")
    add("--json", type=Path, help="write all times to this file")
    args = parser.parse_args()
    if args.threads is not None:
        cvit.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="cvit-pipeline-") as folder:
        result = measure(args, Path(folder))
    show(result)
    if args.json is not None:
        result["options"] = {**result["options"], "json": None}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
