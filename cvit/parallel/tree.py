"""The sum over the parts of a batch as one fixed binary tree, whichever rank computes which part.

Floating-point sums depend on their order, and MPI's own reductions promise none. Here node (lo, hi) stands for the sum
over the parts lo to hi, hi excluded:

    node(lo, hi) = node(lo, mid) + node(mid, hi),   mid = lo + the largest power of two below hi - lo

A part without images, in a batch of fewer images than parts, is left out: the node above it is its sibling. So the
additions follow from the number of parts and of images alone, and so do the bits of the sum.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .shares import part_slices

Node = tuple[int, int]


class Tree:
    """The sum over `parts` parts of a batch of `images` images; None: every part has some.

    Attributes
    ----------
    root : Node
    terms : dict of Node to (Node, Node)
        What a node is the sum of, the left one first; the others are single parts.
    above : dict of Node to Node
        The node that a node is a term of; the root has none.
    """

    def __init__(self, parts: int, images: int | None = None):
        self.terms: dict[Node, tuple[Node, Node]] = {}
        self.above: dict[Node, Node] = {}
        slices = part_slices(parts if images is None else images, parts)
        self._filled = [piece.start < piece.stop for piece in slices]
        root = self._grown(0, parts)
        assert root is not None, "a batch has at least one image"
        self.root = root

    def _grown(self, lo: int, hi: int) -> Node | None:
        """The node over these parts, or what stands for it; None where all of them are empty."""
        if hi - lo == 1:
            return (lo, hi) if self._filled[lo] else None
        mid = lo + (1 << (hi - lo - 1).bit_length() - 1)
        left, right = self._grown(lo, mid), self._grown(mid, hi)
        if left is None or right is None:
            return left or right
        self.terms[lo, hi] = left, right
        self.above[left] = self.above[right] = lo, hi
        return lo, hi

    def filled(self, own: range) -> list[int]:
        """Those of these parts that have images."""
        return [part for part in own if self._filled[part]]

    def nodes_of(self, own: range) -> list[Node]:
        """The largest nodes all of whose parts are a rank's own: what it adds up by itself, from left to right."""

        def inside(node: Node) -> list[Node]:
            if node not in self.terms:
                return [node] if node[0] in own else []
            found = [each for term in self.terms[node] for each in inside(term)]
            return [node] if tuple(found) == self.terms[node] else found

        return inside(self.root)

    def put(
        self, held: dict[Node, np.ndarray], node: Node, add: Callable[[Node, np.ndarray, np.ndarray], np.ndarray]
    ) -> None:
        """Add up what has both of its terms, now that `node` is among the nodes that are `held`: `add(node, left,
        right)` gives the values of a node, and its terms are held no more."""
        while node in self.above:
            node = self.above[node]
            left, right = self.terms[node]
            if left not in held or right not in held:
                return
            held[node] = add(node, held.pop(left), held.pop(right))
