"""Hulls, tours and triangulations against all that could be, and by hand."""

from itertools import permutations

import pytest
import torch

from regard.tasks.planar import hull, length, points, tour, triangulation, turn

SQUARE = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.4, 0.5], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)


def test_a_square_with_a_point_inside_by_hand():
    assert hull(SQUARE) == [0, 3, 1, 4]
    assert tour(SQUARE[[0, 1, 3, 4]]) == [0, 2, 1, 3]
    assert length(SQUARE, [0, 3, 1, 4]) == pytest.approx(4)
    assert triangulation(SQUARE) == [(0, 2, 3), (0, 2, 4), (1, 2, 3), (1, 2, 4)]


@pytest.mark.parametrize("seed", range(3))
def test_answers_are_the_best_of_all(seed):
    given = points(1, 7, torch.Generator().manual_seed(seed))[0]
    shortest = min(length(given, [0, *rest]) for rest in permutations(range(1, 7)))
    assert length(given, tour(given)) == pytest.approx(shortest)
    corners = hull(given)
    around = zip(corners, [*corners[1:], corners[0]], strict=True)
    assert all(turn(given[a], given[b], given[c]) > 0 for a, b in around for c in set(range(7)) - {a, b})
    assert len(triangulation(given)) == 2 * 7 - 2 - len(corners)


def test_too_many_points_are_named():
    with pytest.raises(ValueError, match=r"^given: got 13 points, want 3 to 12"):
        tour(torch.rand(13, 2))
