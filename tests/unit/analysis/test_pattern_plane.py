"""Planes of maps: three planted kinds lie apart, rows sum to one, and the linear baseline is NumPy's."""

import numpy as np
import pytest
import torch

from regard.analysis.pattern_plane import PatternAutoencoder, PatternPlane, linear_error, pattern_plane


def kinds(count: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps of 7 tokens that look at themselves, at the token before, or at the first, under noise."""
    draw, n = torch.Generator().manual_seed(3), 7
    first = torch.zeros(n, n)
    first[:, 0] = 1
    found = [torch.eye(n), torch.eye(n).roll(-1, 1), first]
    maps = [0.7 * of + 0.3 * torch.randn(count, n, n, generator=draw).softmax(2) for of in found]
    return torch.cat(maps), torch.arange(3).repeat_interleave(count)


def test_kinds_of_maps_lie_apart():
    maps, labels = kinds()
    found = pattern_plane(maps, steps=150, inner=16)
    assert found.neighbours(labels) > 0.95
    assert found.neighbours(labels[torch.randperm(33, generator=torch.Generator().manual_seed(0))]) < 0.7
    assert found.error < float((maps - maps.mean(0)).square().mean()) / 2
    assert len(found.table()) == 33
    with pytest.raises(ValueError, match="maps"):
        pattern_plane(maps[:2])


def test_maps_that_are_made_again_have_rows_that_sum_to_one():
    places, again = PatternAutoencoder(5, 3)(torch.rand(4, 5, 5).softmax(2))
    assert places.shape == (4, 2)
    torch.testing.assert_close(again.sum(2), torch.ones(4, 5))


def test_the_baseline_is_that_of_two_components():
    maps, _ = kinds(5)
    flat = maps.flatten(1).double().numpy()
    centred = flat - flat.mean(0)
    u, s, v = np.linalg.svd(centred, full_matrices=False)
    assert linear_error(maps) == pytest.approx(np.square(centred - (u[:, :2] * s[:2]) @ v[:2]).mean())


def test_neighbours_by_hand():
    plane = PatternPlane(torch.tensor([[0.0, 0], [0, 1], [5, 5], [5, 7]]), 0, 0)
    assert plane.neighbours(torch.tensor([0, 0, 1, 0])) == 0.5
