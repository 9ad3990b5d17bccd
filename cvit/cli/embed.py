"""`cvit embed MODEL PATH… --out FILE`: the features of many pictures, in one file.

Pictures are decoded by a few threads, ahead of the model by a bounded number, so that the model seldom waits and the
memory does not depend on how many pictures there are. Rows go to the disk as they come. Several processes share the
pictures out, `--batch` of them at a time, and rank 0 writes what comes of each such chunk, in order: dealing.py.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
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
    from ..train.agreement import agree
    from .features import writer_for

    ranks = args.ranks
    shared = ranks.share_cores()
    writer = writer_for(args.out)
    found = {name: path for name, path, _ in listed_pictures(args.paths)}
    names = sorted(found)
    model = load(args.model, precision=args.precision, mmap=True).freeze()
    if ranks.size > 1:
        agree(ranks, model.precision, _facts(model, names, args.batch), {"the weights": model.weights})
        print(shared, flush=True)
    with quiet_decoders(), expendable() as output:
        skipped = _embed(model, names, [found[name] for name in names], writer, args)
        left_out = f", {skipped:,} left out that could not be decoded" if skipped else ""
        print(f"{one_line(str(args.out))}: {len(names) - skipped:,} pictures, {model.config.width} features{left_out}")
        ranks.barrier("the file to be complete")
    output.raise_error()


def _facts(model, names: list[str], batch: int) -> dict[str, Any]:
    """What several processes must have alike besides the weights, so that it does not matter whose picture is whose."""
    listed = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    return {
        "the list of pictures": f"{len(names):,} with the digest {listed[:16]}",
        "--batch": batch,
        "precision": model.precision,
        "the model's configuration": model.config,
        "preprocessing": model.preprocessing,
    }


def _embed(model, names: list[str], files: list[Path], writer, args) -> int:
    """Take this process's part in the work: rank 0 writes, and returns how many pictures were left out."""
    from ..parallel.dealing import handed_over, taken

    ranks = args.ranks
    starts = range(0, len(files), args.batch)
    own = [path for start in starts[ranks.rank :: ranks.size] for path in files[start : start + args.batch]]
    results = _results(model, own, args)
    if ranks.first:
        return _write(names, taken(ranks, len(starts), results), writer, args)
    handed_over(ranks, results)
    return 0


def _results(model, files: list[Path], args) -> Iterator[dict]:
    """For each chunk of the files "features" (n, D), None if none can be decoded, and "errors", of those that cannot
    their places in the chunk and what `_told` says of them."""
    from ..engine.runtime import get_num_threads

    decoders = args.decoders or max(2, get_num_threads() // 4)
    for chunk in _batches(_decoded(model, files, decoders, args.batch), args.batch):
        good = [values for values in chunk if not isinstance(values, Exception)]
        errors = [[place, _told(error)] for place, error in enumerate(chunk) if isinstance(error, Exception)]
        yield {"errors": errors, "features": _features(model, good) if good else None}


def _write(names: list[str], chunks: Iterable[dict], writer, args) -> int:
    """Write the features of all chunks, and return how many pictures were left out."""
    from .progress import Pictures

    skipped, start = 0, 0
    with writer as write, Pictures(len(names)) as progress:
        for chunk in chunks:
            of_chunk = names[start : start + args.batch]
            start += len(of_chunk)
            for _, told in chunk["errors"]:
                error = _error(told)
                if args.strict:
                    raise error
                progress.say(f"cvit: left out: {one_line(str(error))}")
            skipped += len(chunk["errors"])
            left_out = {place for place, _ in chunk["errors"]}
            if chunk["features"] is not None:
                write([name for place, name in enumerate(of_chunk) if place not in left_out], chunk["features"])
            progress.advance(len(of_chunk))
        if skipped == len(names):
            raise ValueError(f"none of the {len(names)} pictures could be decoded")
    return skipped


def _told(error: Exception) -> list:
    """An error of a picture in JSON values, for `_error` of another process."""
    if isinstance(error, OSError) and error.errno is not None:
        return [error.errno, error.strerror, None if error.filename is None else os.fspath(error.filename)]
    return [str(error)]


def _error(told: list) -> Exception:
    return ValueError(*told) if len(told) == 1 else OSError(*told)


def _decoded(model, files: list[Path], threads: int, batch: int) -> Iterator[Any]:
    """For each file in turn its values (1, C, H, W), or the error. Two batches at most are ahead."""

    def decode(path):
        try:
            return model.preprocess(path)
        except (ValueError, OSError) as error:
            return error

    pool = ThreadPoolExecutor(threads, "decode")
    try:
        ahead: deque[Future] = deque()
        for path in files:
            ahead.append(pool.submit(decode, path))
            if len(ahead) > 2 * batch:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
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
