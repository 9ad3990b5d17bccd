"""The cosines and sines of rotary positions, which a plan keeps for its steps.

Fixed angles give one table for all blocks, made with the plan; of learned frequencies every block has its own, made
anew before each pass, but once for a frozen model. A bfloat16 model's are the same bits on every machine.
"""

import numpy as np

from .building cimport Building
from .task cimport Pass
from .program import Rotate
from .sines import cosines_sines
from .team import in_own_mode


cdef class Tables(Building):
    """A plan's tables of rotary positions."""

    def _place_tables(self):
        """The cosines and sines of rotary positions; of learned ones for each block, and the patches' coordinates."""
        cdef Pass* p = &self.p
        rotation = self.program.rotation
        self.tables, self.learned = np.empty(0, self.dtype), []
        if rotation is None:
            return
        if rotation.angles is not None:
            in_own_mode(self._fill_fixed_tables, rotation.angles)
            return
        self.learned = [
            (part.frequencies, part.heads * part.width // 2)
            for block in self.program.blocks for part in block.before if isinstance(part, Rotate)
        ]  # fmt: skip
        p.tables_of_weights = 1
        p.coordinates = sum(2 * p.patches * pairs for _, pairs in self.learned) * p.K.size
        self.tables = np.empty(p.coordinates // p.K.size + 2 * p.patches, self.dtype)
        self.tables[p.coordinates // p.K.size :] = rotation.coordinates.ravel()

    def _tables_of(self, Py_ssize_t layer):
        """Where a block's cosines and sines lie, in bytes."""
        cdef Py_ssize_t size = self.p.K.size
        if not self.learned:
            return 0, self.tables.nbytes // 2
        first = sum(2 * self.p.patches * pairs for _, pairs in self.learned[:layer])
        return first * size, (first + self.p.patches * self.learned[layer][1]) * size

    def _fill_fixed_tables(self, angles):
        """The cosines of all angles, then their sines."""
        cos, sin = cosines_sines(angles) if self.p.K.half else (np.cos(angles), np.sin(angles))
        self.tables = np.concatenate([cos.ravel(), sin.ravel()]).astype(self.dtype)

    def _fill_learned_tables(self, weights):
        """The angles of learned frequencies: a patch's coordinates times those of both axes."""
        cdef Py_ssize_t layer
        size = self.dtype.itemsize
        at = self.tables[self.p.coordinates // size :].reshape(-1, 2)
        for layer, (offset, pairs) in enumerate(self.learned):
            both = weights[offset : offset + 2 * pairs].reshape(2, pairs)
            cosines, sines = (start // size for start in self._tables_of(layer))
            count = self.p.patches * pairs
            angles = self.tables[sines : sines + count].reshape(-1, pairs)
            np.multiply(at[:, :1], both[0], out=angles)
            np.add(angles, at[:, 1:] * both[1], out=angles)
            to = self.tables[cosines : cosines + count].reshape(-1, pairs)
            if self.p.K.half:
                to[...], angles[...] = cosines_sines(angles.astype(np.float64))
            else:
                np.cos(angles, out=to)
                np.sin(angles, out=angles)
        self.tables_done = True
