"""Drawn scenes, and what is said of the boxes that are found in them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from regard.tasks.boxes import average_precision, overlaps, suppressed
from regard.tasks.scenes import SHAPES, Scenes, reach


def test_the_same_generator_draws_the_same_scenes():
    first, second = (Scenes(37).many(3, Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    other = Scenes(37).many(3, Generator().manual_seed(6))[0]
    assert other.shape == (3, 3, 37, 37)
    assert not torch.equal(first[0], other)


@given(side=st.sampled_from([29, 32, 64]), seed=st.integers(0, 99))
@settings(max_examples=5, deadline=None)
def test_a_scene_is_ground_but_for_its_shapes(side, seed):
    """Outside of the boxes two scenes are the same that differ in what is drawn into them alone."""
    scenes = Scenes(side, noise=0)
    _, kinds, boxes = scenes.many(5, Generator().manual_seed(seed))
    assert set(kinds.unique().tolist()) <= {-1, *range(len(SHAPES))}
    assert (boxes[..., :2] >= -1e-4).all()
    assert (boxes[..., 2:] <= side + 1e-4).all()
    sides = boxes[..., 2:] - boxes[..., :2]
    torch.testing.assert_close(sides[..., 0], sides[..., 1])
    assert (sides > 6 - 1e-3).all()
    ground = torch.zeros(5, 3, side, side)
    half = sides[..., 0] / 2
    drawn = scenes.over(
        ground, kinds[:, 0].clamp(min=0), boxes[:, 0].view(5, 2, 2).mean(1).flip(-1), half[:, 0], Generator()
    )
    place = scenes.cells().flip(-1)
    near = ((place >= boxes[:, 0, None, None, :2] - 1) & (place <= boxes[:, 0, None, None, 2:] + 1)).all(-1)
    assert drawn.movedim(1, -1)[~near].abs().max() == 0
    assert (drawn.movedim(1, -1)[near].abs().max(-1).values > 0).any()


def test_edges_of_shapes_are_where_they_should_be():
    """A disc, a square, a diamond, a ring from half of its width on, a cross with arms of 0.3."""
    away = torch.tensor([[0.0, 1.0], [0.8, 0.8], [0.6, 0.6], [0.0, 0.0], [0.2, 0.9], [0.5, 0.5]])
    inside = [
        (reach(away[None, None], torch.tensor([kind])) <= 1 + 1e-6).flatten().tolist() for kind in range(len(SHAPES))
    ]
    assert inside == [
        [True, False, True, True, True, True],
        [True, True, True, True, True, True],
        [True, False, False, True, False, True],
        [True, False, True, False, True, True],
        [True, False, False, True, True, False],
    ]


def test_overlaps_by_hand():
    one, other = torch.tensor([0.0, 0, 4, 3]), torch.tensor([[2.0, 1, 5, 5], [4, 3, 6, 7], [0, 0, 4, 3]])
    torch.testing.assert_close(overlaps(one, other), torch.tensor([4 / 20, 0, 1]))


def test_a_box_over_a_better_one_of_its_kind_goes():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [0, 0, 4, 5], [9, 9, 11, 11]])
    left, scores, kinds = suppressed((boxes, torch.tensor([0.7, 0.9, 0.8, 0.1]), torch.tensor([1, 1, 0, 1])))
    assert (left.tolist(), kinds.tolist()) == (boxes[[1, 2, 3]].tolist(), [1, 0, 1])
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.8, 0.1]))


def test_average_precision_by_hand():
    """Two boxes of the kind; found right, wrong, right: recall ½ at precision 1, then 1 at 2/3."""
    there = torch.tensor([[0.0, 0, 4, 4], [10, 10, 14, 14], [20, 20, 24, 24]])
    kinds = torch.tensor([2, 2, -1])
    found = torch.tensor([[10.0, 10, 14, 14], [20, 20, 24, 24], [0, 0, 4, 5], [0, 0, 4, 4]])
    scores, what = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([2, 2, 2, 2])
    assert average_precision([(found, scores, what)], [kinds], [there], 2) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert math.isnan(average_precision([(found, scores, what)], [kinds], [there], 1))
    nothing = (found[:0], scores[:0], what[:0])
    assert average_precision([nothing], [kinds], [there], 2) == 0


@pytest.mark.parametrize("given", [{"side": 20}, {"small": 3}, {"bars": -1}, {"noise": -0.1}])
def test_scenes_that_cannot_be_are_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        Scenes(**given)
