"""Fashion-MNIST as an .npz that `cvit train` takes: python examples/fashion_mnist.py [FOLDER] fashion.npz

FOLDER holds the four IDX files of https://github.com/zalandoresearch/fashion-mnist (MIT), gzipped; Debian's package
dataset-fashion-mnist puts them into the folder that is the default. Then: cvit train fashion.npz
"""

import gzip
import sys
from pathlib import Path

import numpy as np

FOLDER = "/usr/share/datasets/fashion-mnist"
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle-boot"]


def idx(path):
    """An IDX file of bytes: two zeros, the type 8, the number of axes, their lengths, the values."""
    data = gzip.decompress(Path(path).read_bytes())
    axes = data[3]
    shape = np.frombuffer(data, ">u4", axes, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def main(*arguments):
    *folder, out = arguments
    read = lambda name: idx(Path(*(folder or [FOLDER]), f"{name}.gz"))
    np.savez(
        out, x=read("train-images-idx3-ubyte"), y=read("train-labels-idx1-ubyte").astype(np.int64),
        x_test=read("t10k-images-idx3-ubyte"), y_test=read("t10k-labels-idx1-ubyte").astype(np.int64),
        classes=np.array(CLASSES),
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
