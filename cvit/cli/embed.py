"""`cvit embed MODEL PATH… --out FILE`: the features of many pictures, in one file.

Pictures are decoded by a few threads, ahead of the model by a bounded number, so that the model seldom waits and the
memory does not depend on how many pictures there are. Rows go to the disk as they come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .options import (
    MOST_IMAGES,
    MOST_THREADS,
    listed_pictures,
    option,
    precision_option,
    quiet_decoders,
    threads_option,
    use_threads,
    whole,
)  # fmt: skip
from .output import expendable, one_line

DESCRIPTION = (
    "Write the pooled features of pictures, what the model's head sees, to a file: one row a picture, in the order of\n"
    "the sorted names. A folder's pictures are found by their extensions, in the folders below it, too. Pictures that\n"
    "cannot be decoded are named, counted and left out."
)
EXAMPLE = "cvit embed vit.safetensors photos/ --out photos.npz"


def add_arguments(parser) -> None:
    """Add the command's arguments to `parser`."""
    parser.add_argument(
        "model", metavar="MODEL", help="what cvit.load takes: a file, a folder, or a name on the Hugging Face Hub"
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a folder of pictures, or pictures")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE",
        help="FILE.npz: the arrays features (N, D) and names; FILE.npy: features alone; FILE.csv: a row name,f0,f1,…",
    )  # fmt: skip
    option(parser, "--batch", 32, whole(1, MOST_IMAGES), "pictures in a pass")
    parser.add_argument(
        "--decoders", type=whole(1, MOST_THREADS), metavar="INT",
        help="threads that decode pictures (default a quarter of the others, at least 2)",
    )  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="stop at a picture that cannot be decoded")
    precision_option(parser)
    threads_option(parser)


def run(args) -> None:
    """Embed and write. The file appears when it is complete."""
    use_threads(args.threads)
    from .. import load
    from .features import writer_for

    writer = writer_for(args.out)
    found = {name: path for name, path, _ in listed_pictures(args.paths)}
    names = sorted(found)
    files = [found[name] for name in names]
    model = load(args.model, precision=args.precision, mmap=True).freeze()
    with quiet_decoders(), expendable() as output:
        skipped = _embed(model, names, files, writer, args)
        left_out = f", {skipped:,} left out that could not be decoded" if skipped else ""
        print(f"{one_line(str(args.out))}: {len(files) - skipped:,} pictures, {model.config.width} features{left_out}")
    output.raise_error()


def _embed(model, names, files, writer, args) -> int:
    """Write the features of all files, and return how many of these were left out."""
    from ..engine.runtime import get_num_threads
    from .progress import Pictures

    skipped = 0
    decoders = args.decoders or max(2, get_num_threads() // 4)
    with writer as write, Pictures(len(files)) as progress:
        for batch in _batches(_decoded(model, files, decoders, args.batch), args.batch):
            good = [(index, values) for index, values in batch if not isinstance(values, Exception)]
            for _, error in batch:
                if isinstance(error, Exception):
                    if args.strict:
                        raise error
                    skipped += 1
                    progress.say(f"cvit: left out: {one_line(str(error))}")
            if good:
                write([names[index] for index, _ in good], _features(model, [values for _, values in good]))
            progress.advance(len(batch))
        if skipped == len(files):
            raise ValueError(f"none of the {len(files)} pictures could be decoded")
    return skipped


def _decoded(model, files: list[Path], threads: int, batch: int) -> Iterator[tuple[int, Any]]:
    """For each file in turn its index and its values (1, C, H, W), or the error. Two batches at most are ahead."""

    def decode(path):
        try:
            return model.preprocess(path)
        except (ValueError, OSError) as error:
            return error

    pool = ThreadPoolExecutor(threads, "decode")
    try:
        ahead: deque[tuple[int, Future]] = deque()
        for index, path in enumerate(files):
            ahead.append((index, pool.submit(decode, path)))
            if len(ahead) > 2 * batch:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(pictures: Iterator, batch: int) -> Iterator[list]:
    """Lists of `batch` pictures, the last one of what is left."""
    group = []
    for picture in pictures:
        group.append(picture)
        if len(group) == batch:
            yield group
            group = []
    if group:
        yield group


def _features(model, values: list):
    import numpy as np

    features = model.features(np.concatenate(values))
    if features.ndim != 2:
        raise ValueError(f"the model has no pooled features of a picture: its features have the shape {features.shape}")
    return features
