"""The progress of a training run: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time


def progress(epochs: int, images: int):
    """A context manager with `on_step` and `on_epoch`, as `fit` calls them, for `epochs` passes over `images`
    images."""
    return (Bar if sys.stdout.isatty() else Lines)(epochs, images)


class Lines:
    """Progress as one line an epoch, for files and pipes."""

    def __init__(self, epochs, images):
        self.epochs = epochs
        self.start = time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def on_step(self, step):
        pass

    def on_epoch(self, epoch):
        eta = (time.perf_counter() - self.start) / epoch.epoch * (self.epochs - epoch.epoch)
        print(
            f"epoch {epoch.epoch}/{self.epochs}  loss {epoch.train_loss:.3f}  accuracy {epoch.train_accuracy:.1%}  "
            f"test {epoch.test_accuracy:.1%}  {epoch.images_per_second:,.0f} images/s  ETA {eta:.0f} s",
            flush=True,
        )


class Bar:
    """Progress as a bar that moves with every step, for a terminal."""

    def __init__(self, epochs, images):
        from tqdm import tqdm

        self.epochs, self.images = epochs, images
        self.test = ""
        self.bar = tqdm(
            total=epochs * images, unit=" images", unit_scale=True, file=sys.stdout,
            ncols=shutil.get_terminal_size().columns, nrows=2,  # else tqdm shows nothing where a terminal says 0 x 0
            bar_format="{desc} {bar} {percentage:3.0f}%  {rate_fmt}  ETA {remaining}",
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def on_step(self, step):
        text = f"epoch {step.epoch}/{self.epochs}  loss {step.loss:.3f}  accuracy {step.accuracy:.1%}{self.test}"
        self.bar.set_description_str(text, refresh=False)
        self.bar.update((step.epoch - 1) * self.images + step.images - self.bar.n)

    def on_epoch(self, epoch):
        self.test = f"  test {epoch.test_accuracy:.1%}"
