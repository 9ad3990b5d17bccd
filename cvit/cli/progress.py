"""The progress of a training run, or of a count of pictures: a bar or one line on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import shutil
import sys
import time


def progress(epochs: int, images: int):
    """A context manager with `on_step` and `on_epoch`, as `fit` calls them, for `epochs` passes over `images` images:
    a bar on a terminal, where tqdm is installed, else lines."""
    bar = sys.stdout.isatty() and importlib.util.find_spec("tqdm") is not None
    return (Bar if bar else Lines)(epochs, images)


class Lines:
    """Progress as one line an epoch, for files and pipes."""

    def __init__(self, epochs, images):
        self.epochs = epochs
        self.start, self.first = time.perf_counter(), None
        self.best = Best()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def close(self):
        """Training is over; what follows is printed by others."""

    def on_step(self, step):
        self.first = self.first or step.epoch  # of a run that was resumed not 1

    def on_epoch(self, epoch):
        done = epoch.epoch - (self.first or epoch.epoch) + 1
        eta = (time.perf_counter() - self.start) / done * (self.epochs - epoch.epoch)
        print(
            f"epoch {epoch.epoch}/{self.epochs}  loss {epoch.train_loss:.3f}  accuracy {epoch.train_accuracy:.1%}"
            f"{self.best.text(epoch)}  {epoch.images_per_second:,.0f} images/s  ETA {eta:.0f} s",
            flush=True,
        )


class Bar:
    """Progress as a bar that moves with every step, for a terminal."""

    def __init__(self, epochs, images):
        from tqdm import tqdm

        self.epochs, self.images = epochs, images
        self.test, self.best = "", Best()
        self.bar = tqdm(
            total=epochs * images, unit=" images", unit_scale=True, file=sys.stdout,
            ncols=shutil.get_terminal_size().columns, nrows=2,  # else tqdm shows nothing where a terminal says 0 x 0
            bar_format="{desc} {bar} {percentage:3.0f}%  {rate_fmt}  ETA {remaining}",
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        """Leave the bar as it is: what follows is printed below it."""
        self.bar.close()

    def on_step(self, step):
        text = f"epoch {step.epoch}/{self.epochs}  loss {step.loss:.3f}  accuracy {step.accuracy:.1%}{self.test}"
        self.bar.set_description_str(text, refresh=False)
        self.bar.update((step.epoch - 1) * self.images + step.images - self.bar.n)

    def on_epoch(self, epoch):
        self.test = self.best.text(epoch)


class Best:
    """The best validation accuracy so far, in words."""

    def __init__(self):
        self.accuracy, self.epoch = -1.0, 0

    def text(self, epoch) -> str:
        """The validation of an epoch and the best so far; nothing where there is no validation."""
        if math.isnan(epoch.test_accuracy):
            return ""
        if epoch.test_accuracy > self.accuracy:
            self.accuracy, self.epoch = epoch.test_accuracy, epoch.epoch
        return f"  validation {epoch.test_accuracy:.1%} (best {self.accuracy:.1%}, epoch {self.epoch})"


class Pictures:
    """How many of `total` pictures are done, images/s and the time left: a line that is written again and again on a
    terminal, elsewhere a new line every few seconds.

    A context manager; `say` prints a message to standard error without disturbing the line.
    """

    def __init__(self, total: int):
        self.total, self.done = total, 0
        self.terminal = sys.stdout.isatty()
        self.pause = 0.2 if self.terminal else 5.0  # seconds between two lines
        self.start = self.shown = time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, kind, *error):
        if kind is None and self.done:
            self._show()
        if self.terminal:
            print(flush=True)

    def advance(self, count: int) -> None:
        """`count` more pictures are done."""
        self.done += count
        if time.perf_counter() - self.shown >= self.pause and self.done < self.total:
            self._show()

    def say(self, message: str) -> None:
        """Print a line to standard error."""
        if self.terminal:
            print("\r\x1b[K", end="", flush=True)
        with contextlib.suppress(OSError):  # nobody may read it
            print(message, file=sys.stderr, flush=True)

    def _show(self) -> None:
        self.shown = time.perf_counter()
        rate = self.done / max(self.shown - self.start, 1e-9)
        left = (self.total - self.done) / rate
        line = f"{self.done:,}/{self.total:,} images  {rate:,.1f} images/s  ETA {left:.0f} s"
        print(f"\r\x1b[K{line}" if self.terminal else line, end="" if self.terminal else "\n", flush=True)
