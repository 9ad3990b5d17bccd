"""One line for the bf16 arrays that tests/aarch64/models.py wrote: python tests/amx/digests.py FILE.npz

Their number, the tables they are of, and a digest of their bits, which all tables must share.
"""

import hashlib
import sys

import numpy as np

arrays, tables = {}, set()
with np.load(sys.argv[1]) as found:
    for name in found.files:
        key, _, table = name.rpartition(" | ")
        if "| bf16 |" in key:
            array = found[name]
            arrays.setdefault(key, set()).add(np.where(np.isnan(array), np.nan, array).tobytes())
            tables.add(table)
differing = [key for key, bits in arrays.items() if len(bits) > 1]
if differing:
    sys.exit(f"error: {len(differing)} of {len(arrays)} arrays differ between tables: {differing[:5]}")
digest = hashlib.sha256(b"".join(bits for key in sorted(arrays) for bits in arrays[key]))
print(len(arrays), "bf16 arrays, the same on", *sorted(tables), digest.hexdigest()[:16])
