"""Record what JAX and Flax draw and compute, for tests on machines that have neither.

    pip install jax==0.10.2 flax==0.12.8
    JAX_PLATFORMS=cpu python tests/data/record_flax.py

writes beside this script

flax_random.npz   for some seeds: the key, keys split and folded from it, bits, the SHA-256 of a longer run of bits, and
                  uniform, normal and truncated normal numbers
flax_models.npz   for every model of tests/flax_cases.py and both of Flax's interfaces: some of the weights, the sum of
                  the absolute values of every array of weights, and the logits
"""

import hashlib
import pathlib
import sys

import jax
import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import flax_models  # noqa: E402
from flax_cases import CASES, name, samples  # noqa: E402

RANDOM_SEEDS = (0, 1, 2**31, 2**32 + 5, -1, -5, 2**63 - 1, -(2**63))


def record_random():
    key_data = jax.random.key_data
    records = {"seeds": np.array(RANDOM_SEEDS)}
    for i, seed in enumerate(RANDOM_SEEDS):
        key = jax.random.key(seed)
        records |= {
            f"{i}.key": key_data(key),
            f"{i}.split": key_data(jax.random.split(key, 3)),
            f"{i}.fold_in": np.stack([key_data(jax.random.fold_in(key, data)) for data in (0, 1, 2**32 - 1)]),
            f"{i}.bits": jax.random.bits(key, (5, 3)),
            f"{i}.digest": hashlib.sha256(np.asarray(jax.random.bits(key, (100_003,)))).hexdigest(),
            f"{i}.uniform": jax.random.uniform(key, (16,), minval=-0.7, maxval=0.3),
            f"{i}.normal": jax.random.normal(key, (150,)),
            f"{i}.truncated_normal": jax.random.truncated_normal(key, -2, 2, (150,)),
        }
    np.savez_compressed(HERE / "flax_random.npz", **records)


def record_models():
    records = {}
    for case in CASES:
        for api in ("nnx", "linen"):
            prefix = f"{name(case)}.{api}"
            tree = flax_models.draw(api, case.config, case.seed)
            records[f"{prefix}.samples"], records[f"{prefix}.sums"] = samples(tree)
            records[f"{prefix}.logits"] = flax_models.forward(api, case.config, case.seed, case.cropped)
            print(prefix, flush=True)
    np.savez_compressed(HERE / "flax_models.npz", **records)


if __name__ == "__main__":
    record_random()
    record_models()
