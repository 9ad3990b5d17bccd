"""Shares of a batch, and the tree over its parts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvit.parallel.shares import own_parts, own_pictures, part_slices
from cvit.parallel.tree import Tree


@given(st.integers(0, 1000), st.integers(1, 64))
def test_parts_are_equal_shares_in_order(images, parts):
    slices = part_slices(images, parts)
    assert len(slices) == parts
    assert [i for piece in slices for i in range(piece.start, piece.stop)] == list(range(images))
    lengths = [piece.stop - piece.start for piece in slices]
    assert max(lengths) - min(lengths) <= 1
    assert [own_pictures(images, rank, parts) for rank in range(parts)] == slices


@given(st.integers(1, 64), st.integers(0, 100))
def test_every_part_is_of_one_rank_and_every_rank_has_some(size, more):
    shares = [own_parts(rank, size, size + more) for rank in range(size)]
    assert [part for share in shares for part in share] == list(range(size + more))
    assert all(shares)


def test_more_ranks_than_parts_are_an_error():
    with pytest.raises(ValueError, match="parts must be at least the number of ranks, 3, got 2"):
        own_parts(0, 3, 2)


def test_the_tree_as_it_is_written():
    assert Tree(5).terms == {(0, 2): ((0, 1), (1, 2)), (2, 4): ((2, 3), (3, 4)), (0, 4): ((0, 2), (2, 4)),
                             (0, 5): ((0, 4), (4, 5))}  # fmt: skip
    assert Tree(1).root == (0, 1) and not Tree(1).terms
    assert Tree(8).nodes_of(range(2, 5)) == [(2, 4), (4, 5)]
    assert Tree(6).terms[0, 6] == ((0, 4), (4, 6))


def test_parts_without_images_are_left_out():
    tree = Tree(8, 3)  # images 0, 1 and 2 are parts 2, 5 and 7
    assert tree.filled(range(8)) == [2, 5, 7]
    assert tree.terms == {(4, 8): ((5, 6), (7, 8)), (0, 8): ((2, 3), (4, 8))}
    assert tree.nodes_of(range(4)) == [(2, 3)] and tree.nodes_of(range(5)) == [(2, 3)]
    assert tree.nodes_of(range(4, 8)) == tree.nodes_of(range(5, 8)) == [(4, 8)] and tree.nodes_of(range(3, 5)) == []
    assert Tree(4, 1).root == (3, 4)


@given(st.integers(1, 20), st.integers(1, 25), st.integers(0, 20))
def test_ranks_nodes_make_the_root_in_any_order(parts, images, seed):
    """By pairs of terms, each of which is its node's parts in order."""
    tree, rng = Tree(parts, images), np.random.default_rng(seed)
    size = int(rng.integers(1, parts + 1))
    nodes = [node for rank in range(size) for node in tree.nodes_of(own_parts(rank, size, parts))]
    held, made = {}, []
    for node in rng.permutation(len(nodes)):
        held[nodes[node]] = tree.filled(range(*nodes[node]))
        tree.put(held, nodes[node], lambda node, left, right: made.append(node) or left + right)
    assert held == {tree.root: tree.filled(range(parts))} and len(made) == len(set(made)) == len(nodes) - 1
