"""Attention tied by a tree: its limits, any tree, and the nearest to softmax that a solver finds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regard
from regard.claims.trees import TREES, blocks, divergence_of, minimised
from regard.core.layout import Layout
from regard.mechanisms.structured.tree import Hierarchy, attend, tied

CAUSAL = Layout(causal=True)


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


def test_causal_rows_are_the_nearest_to_softmax_that_are_tied_to_complete_left_siblings():
    """Token 7 of a tree by twos sees itself, 6, {4, 5} and {0 … 3}; no other such row is nearer to softmax."""
    q, k, v = draw(9, 5, 5, 7)
    mechanism = regard.build("tree", branching=2)
    a, plain = mechanism.weights(q, k, CAUSAL), torch.softmax(q[:, :, 7:8] @ k[:, :, :8].mT * 5**-0.5, -1)[:, :, 0]
    parts = [[0, 1, 2, 3], [4, 5], [6], [7]]
    logs = torch.stack([(q[:, :, 7] * k[:, :, part].mean(2)).sum(-1) * 5**-0.5 for part in parts], -1)
    masses = torch.softmax(logs + torch.tensor([4.0, 2, 1, 1]).log(), -1)
    row = torch.cat([masses[..., [place]].expand(-1, -1, len(x)) / len(x) for place, x in enumerate(parts)], -1)
    torch.testing.assert_close(a[:, :, 7, :8], row)
    torch.testing.assert_close(mechanism(q, k, v, CAUSAL), a @ v)
    assert not a[:, :, 7, 8].any()

    def divergence(row):
        return (row * (row / plain).log()).sum(-1)

    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        other = torch.rand(masses.shape, generator=generator, dtype=torch.float64)
        other = other / other.sum(-1, keepdim=True)
        drawn = torch.cat([other[..., [place]].expand(-1, -1, len(x)) / len(x) for place, x in enumerate(parts)], -1)
        assert (divergence(drawn) > divergence(row)).all()
