"""Filtrations against the graph of each threshold, counted by SciPy, and by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from regard.analysis.sink_geometry import filtration, geometry


@settings(max_examples=12, deadline=None)
@given(st.integers(3, 13), st.integers(0, 999))
def test_betti_numbers_of_every_threshold_are_those_of_its_graph(n, seed):
    draw = torch.Generator().manual_seed(seed)
    weights = torch.randint(0, 9, (n, n), generator=draw).double() / 9  # many ties, and none
    found = filtration(weights)
    both = torch.maximum(weights, weights.T)
    for threshold in (0.05, 0.2, 0.5, 0.99, 1.5, *found.thresholds.tolist()):
        edges = (both >= threshold).triu(1)
        components = int(connected_components(edges.numpy(), directed=False)[0])
        assert found.at(threshold) == (components, int(edges.sum()) - n + components)
    assert found.thresholds.tolist() == sorted(set(both[both.triu(1) > 0].tolist()), reverse=True)
    one = geometry(weights.float(), 0.3)
    assert (one.components, one.cycles) == found.at(0.3)


def test_a_triangle_with_a_tail_by_hand():
    weights = torch.zeros(4, 4)
    weights[1, 0], weights[2, 1], weights[0, 2], weights[3, 2] = 0.9, 0.7, 0.7, 0.2
    found = filtration(weights)
    torch.testing.assert_close(found.thresholds, torch.tensor([0.9, 0.7, 0.2]).double())
    assert found.components.tolist() == [3, 2, 1]
    assert found.cycles.tolist() == [0, 1, 1]
    torch.testing.assert_close(found.joined, torch.tensor([0.9, 0.7, 0.2]).double())
    assert found.spread == pytest.approx(0.6)
    assert found.at(1.0) == (4, 0)
    assert found.table()[1] == {"threshold": pytest.approx(0.7), "components": 2, "cycles": 1}
    weights[3, 2] = 0
    assert filtration(weights).joined.tolist()[-1] == 0
    with pytest.raises(ValueError, match="weights"):
        filtration(torch.zeros(2, 2))
