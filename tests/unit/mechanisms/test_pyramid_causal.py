"""Causal pyramids, shares of the mass and curves, as the authors' code has them (tests/reference/pyramid_causal.py)."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.waves import alike_in_places
from regard.core.layout import Layout
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.pyramid import PyramidSparse
from regard.patterns.choice import Rows
from regard.patterns.curve import along_curve
from regard.patterns.grid import coordinates
from regard.routers.diagonal import DiagonalLevels
from regard.routers.levels import Levels

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "pyramid_causal.json").read_text())
QUOTAS = {1: 0.3, 2: 0.5, 4: 0.7, 8: 0.9}


@pytest.mark.parametrize("way", ["causal", "all"])
def test_importance_and_levels_of_the_authors(way):
    q, k, _ = alike_in_places(384)
    for by in ("count", "mass"):
        router, rows = DiagonalLevels(16, QUOTAS, by=by, stride=4), Rows.last(384, 384, 16, 16, way == "causal")
        paid = router.scores(q, router.summary(k), rows)
        torch.testing.assert_close(
            paid[:, :, ::5], torch.tensor(VALUES["importance"][f"{way} paid"]), atol=1e-5, rtol=1e-4
        )
        levels, theirs = router.levels(q, k, rows)[:, :, ::5], torch.tensor(VALUES["importance"][f"{way} {by}"])
        assert torch.equal(levels, theirs)
        assert set(theirs.flatten().tolist()) == {0, 1, 2, 4, 8}


def test_shares_of_the_mass_of_the_authors():
    weights, want = (torch.tensor(VALUES["mass"][name]) for name in ("weights", "levels"))
    rows = Rows.last(3, 21, 1, 1, False)
    assert torch.equal(Levels(8, 8, QUOTAS, by="mass").ranked(weights, rows), want.long())
    assert [(want[0, 0, 2] == level).sum() for level in (1, 2)] == [2, 0]  # 6% and one more, though one has it all


@pytest.mark.parametrize("way", ["forward", "weights"])
def test_causal_outputs_of_the_authors_kernel(way, monkeypatch):
    q, k, v = alike_in_places(640, 64)
    levels = torch.tensor(VALUES["attention"]["levels"]).long()
    mechanism, layout = PyramidSparse(128, 128, stride=16), Layout(causal=True)
    monkeypatch.setattr(PyramidSparse, "levels", lambda *_: levels)
    out = mechanism(q, k, v, layout) if way == "forward" else mechanism.weights(q, k, layout) @ v
    torch.testing.assert_close(out[:, :, ::97], torch.tensor(VALUES["attention"]["out"]), atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize(("grid", "cells"), VALUES["curves"], ids=str)
def test_curves_of_the_authors(grid, cells):
    assert along_curve(tuple(grid)).tolist() == cells


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple))
def test_a_curve_meets_every_cell_from_neighbour_to_neighbour(grid):
    order = along_curve(grid)
    assert order.sort().values.tolist() == list(range(len(order)))
    steps = torch.stack(coordinates(order, grid), 1).diff(dim=0).abs()
    assert not len(steps) or int(steps.amax()) <= 2
    if all(size % 2 == 0 for size in grid):
        assert bool((steps.sum(1) == 1).all())


def test_tokens_are_put_in_order_and_back():
    """As a call with the tokens already in the order of the curve."""
    grid, mechanism = (3, 4, 5), PyramidSparse(8, 4, {1: 0.3, 2: 0.6}, curve=True)
    q, k, v = torch.randn(3, 1, 2, 60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order, layout = along_curve(grid), Layout(grid=grid)
    want = mechanism(*(x[:, :, order] for x in (q, k, v)))
    torch.testing.assert_close(mechanism(q, k, v, layout)[:, :, order], want)
    torch.testing.assert_close(mechanism.weights(q, k, layout) @ v, mechanism(q, k, v, layout))
    assert (mechanism(q, k, v) - mechanism(q, k, v, layout)).abs().max() > 1e-3


def test_a_prompt_then_all_keys():
    q, k, v = torch.randn(3, 1, 2, 29, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mechanism, causal = PyramidSparse(4, 4, {1: 0.2, 2: 0.4}, stride=2), Layout(causal=True)
    first, rest = slice(0, 25), slice(25, None)
    out, state = mechanism.extend(q[:, :, first], k[:, :, first], v[:, :, first], mechanism.start(1))
    torch.testing.assert_close(out, mechanism(q[:, :, first], k[:, :, first], v[:, :, first], causal))
    out, _ = mechanism.extend(q[:, :, rest], k[:, :, rest], v[:, :, rest], state)
    torch.testing.assert_close(out, Softmax()(q, k, v, causal)[:, :, rest])


@pytest.mark.parametrize(
    ("given", "said"), [({"stride": 5}, "stride"), ({"size": 64, "stride": 4}, "size, block"), ({"by": "rank"}, "by")]
)
def test_refusals(given, said):
    with pytest.raises(ValueError, match=f"{said}: got"):
        PyramidSparse(**given)


def test_a_curve_takes_whole_grids():
    q = torch.randn(1, 2, 24, 4)
    with pytest.raises(ValueError, match="layout: got"):
        PyramidSparse(8, 8, curve=True)(q, q, q, Layout(grid=(2, 3, 4), key_mask=torch.ones(1, 24, dtype=torch.bool)))
