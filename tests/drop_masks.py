"""What cvit drops at random, in NumPy: the hash of csrc/kernels/drop.inc and the places of cvit/model/drop.py, written
a second time for tests/reference.py."""

import numpy as np

from cvit.model.threefry import threefry2x32

MASK = 0xFFFFFFFF


def hashed(key, high, low):
    """Threefry-2x32 of the counters (high, low), arrays of equal shape, under a key of 64 bits, a Python int."""
    high, low = np.broadcast_arrays(np.asarray(high, np.uint32), np.asarray(low, np.uint32))
    words = threefry2x32(np.array([key >> 32, key & MASK], np.uint32), high.ravel(), low.ravel())
    return [word.reshape(high.shape) for word in words]


def key_of(seed, place, sample):
    """The key of a place in the model and an image."""
    key = seed
    for number in (place, sample):
        first, second = hashed(key, [number >> 32], [number & MASK])
        key = int(first[0]) << 32 | int(second[0])
    return key


def element_words(key, rows, columns):
    """The words (len(rows), columns) of an image's rows."""
    groups = -(-columns // 32)
    counters = np.arange(16 * groups)
    first, second = hashed(key, np.asarray(rows)[:, None], counters[None])
    shape = (len(rows), groups, 16)
    return np.stack([first.reshape(shape), second.reshape(shape)], axis=2).reshape(len(rows), -1)[:, :columns]


def branch_word(key):
    return int(hashed(key, [MASK], [0])[0][0])


def elements(rate, seed, place, first, shape):
    """The factors (N, T, D) of dropout: 0 or 1 / (1 - rate)."""
    N, T, D = shape
    words = np.stack([element_words(key_of(seed, place, first + n), np.arange(T), D) for n in range(N)])
    return (words >= np.uint32(rate * 2**32)) / (1 - rate)


def branches(path, seed, place, first, N):
    """The factors (N, 1, 1) of stochastic depth: 0 or 1 / (1 - path)."""
    words = np.array([branch_word(key_of(seed, place, first + n)) for n in range(N)], np.uint32)
    return ((words >= np.uint32(path * 2**32)) / (1 - path)).reshape(N, 1, 1)


# In each kind of block what may be dropped, in order: elements of a part's result, or a whole branch, or both.
PLACES = {
    "pre": ("attn.proj", "mlp.act", "mlp.fc2"),
    "parallel": ("attn.proj", "mlp.act", "mlp.fc2"),
    "pairs": ("attn.proj", "attn_2.proj", "mlp.act", "mlp.fc2", "mlp_2.act", "mlp_2.fc2"),
    "post": ("attn.proj", "attn", "mlp.act", "mlp.fc2", "mlp"),
}


class Masks:
    """The factors of a configuration's model by name, as tests/reference.py asks for them: `blocks.0.mlp.act` for
    elements, `blocks.0.mlp` for a branch."""

    def __init__(self, config, drop):
        self.config, self.drop = config, drop

    def __call__(self, name, shape):
        config, drop = self.config, self.drop
        if name == "tokens":
            return elements(drop.rate, drop.seed, 0, drop.first, shape) if drop.rate else 1.0
        _, block, part = name.split(".", 2)
        places, first = PLACES[config.block], 1 + 8 * int(block)
        if "." in part:
            return elements(drop.rate, drop.seed, first + places.index(part), drop.first, shape) if drop.rate else 1.0
        path = drop.path * int(block) / max(1, config.depth - 1)
        if part not in places:
            part = f"{part}.proj" if part.startswith("attn") else f"{part}.fc2"
        place = first + (0 if config.block == "parallel" else places.index(part))
        return branches(path, drop.seed, place, drop.first, shape[0]) if path else 1.0
