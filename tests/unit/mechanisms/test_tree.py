"""Attention tied by a tree: its limits, any tree, and the nearest to softmax that a solver finds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.claims.trees import TREES, blocks, divergence_of, minimised
from regard.mechanisms.structured.tree import Hierarchy, attend, tied


def draw(n, *sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, n, size, generator=generator, dtype=torch.float64) for size in sizes]


def test_one_level_is_softmax():
    q, k, v = draw(11, 5, 5, 7)
    want = torch.softmax(q @ k.mT * 5**-0.5, -1) @ v
    torch.testing.assert_close(attend(q, k, v, Hierarchy.even(11, 13)), want)
    torch.testing.assert_close(attend(q, k, v, Hierarchy.of([11] * 11 + [-1])), want)


@st.composite
def trees(drawn):
    """Random trees of 2 to 13 tokens, as lists of parents."""
    nodes = drawn(st.integers(2, 13))
    parents, free = [-1] * nodes, list(range(nodes))
    while len(free) > 1:
        size = drawn(st.integers(2, len(free)))
        place = drawn(st.integers(0, len(free) - size))
        for child in free[place : place + size]:
            parents[child] = len(parents)
        free[place : place + size] = [len(parents)]
        parents.append(-1)
    return parents


@settings(max_examples=15, deadline=None)
@given(trees())
def test_any_tree_is_its_tied_matrix(parents):
    """One weight a block, rows of one, and the pass up and down is the matrix times the values."""
    tree = Hierarchy.of(parents)
    q, k, v = draw(tree.leaves, 5, 5, 7)
    a = tied(q @ k.mT * 5**-0.5, tree)
    torch.testing.assert_close(attend(q, k, v, tree), a @ v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(a.sum(-1), torch.ones_like(a[..., 0]))
    number = blocks(tree)
    for block in number.unique():
        inside = a[..., number == block]
        torch.testing.assert_close(inside, inside[..., :1].expand_as(inside))


@pytest.mark.parametrize("tree", ["even", "deep", "flat"])
def test_no_tied_matrix_is_nearer_to_softmax(tree):
    shape = Hierarchy.of(TREES[tree])
    q, k, _ = draw(shape.leaves, 5, 5, 7)
    scores = (q @ k.mT)[0, 0]
    own = divergence_of(tied(scores, shape), scores).item()
    assert minimised(scores, shape) == pytest.approx(own, abs=1e-9)


@pytest.mark.parametrize("parents", [[1, 0], [2, 2, -1, -1], [1, -1, 1], [5, -1]])
def test_what_is_no_tree_is_named(parents):
    with pytest.raises(ValueError, match=r"^parents: got"):
        Hierarchy.of(parents)
