"""The progress of a training run, or of a count of pictures: a bar or one line on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
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
