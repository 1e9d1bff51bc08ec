"""Canny's edges: lines of one pixel where something steps, weak ones only where they join strong ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.tasks.edges import canny, slopes


@settings(max_examples=5, deadline=None)
@given(across=st.floats(-2, 2), down=st.floats(-2, 2), deviation=st.floats(0.8, 2))
def test_the_slope_of_a_plane_is_its_own(across, down, deviation):
    y, x = torch.meshgrid(torch.arange(19.0), torch.arange(23.0), indexing="ij")
    found = slopes((across * x + down * y)[None, None].double(), deviation)[0, :, 9, 11]
    assert found.tolist() == pytest.approx([across, down], abs=1e-6)


@pytest.mark.parametrize(("deviation", "reach"), [(0.1, 1), (0.8, 2), (1.0, 3), (1.4, 4)])
def test_a_gaussian_ends_three_deviations_out(deviation, reach):
    image = torch.zeros(1, 1, 13, 15, dtype=torch.float64)
    image[..., 6, 7] = 1
    seen = slopes(image, deviation)[0].abs().sum(0).nonzero()
    assert seen.amin(0).tolist() == [6 - reach, 7 - reach]
    assert seen.amax(0).tolist() == [6 + reach, 7 + reach]
    canny(image[..., : reach + 1, :], deviation, 0.1, 0.2)
    with pytest.raises(ValueError, match=rf"want \(b, 1, y, x\), more than {reach} pixels a side"):
        canny(image[..., :reach, :], deviation, 0.1, 0.2)


@pytest.mark.parametrize("turned", [False, True])
def test_a_step_is_a_line_of_one_pixel(turned):
    """Between columns 9 and 10 of 21: one of both in every row, wherever the threshold lies below its slope."""
    image = (torch.arange(21) > 9).double().expand(17, -1)[None, None]
    image = image.mT if turned else image
    found = canny(image, 1.0, 0.05, 0.1)
    found = found.mT if turned else found
    assert found.sum(3).eq(1).all()
    assert set(found.nonzero()[:, 3].tolist()) <= {9, 10}
    assert not canny(image, 1.0, 0.5, 0.6).any()


def test_weak_edges_are_kept_where_they_join_strong_ones():
    """A step that fades from 1 to 0.2 down the rows, and one of 0.2 apart from it."""
    strength = torch.linspace(1, 0.2, 40).double()[:, None]
    x = torch.arange(41)
    image = (strength * (x > 10) + 0.2 * (x > 30))[None, None]
    slope = 1 / math.sqrt(2 * math.pi)
    weak, strong = canny(image, 1.0, 0.1 * slope, 0.15 * slope), canny(image, 1.0, 0.1 * slope, 0.7 * slope)
    assert weak[..., 28:33].any(3).all()
    assert not strong[..., 28:33].any()
    assert strong[..., 9:13].any(3).all()


def test_a_disc_has_a_ring_about_it():
    y, x = torch.meshgrid(torch.arange(31.0), torch.arange(37.0), indexing="ij")
    far = torch.hypot(x - 18, y - 15)
    found = canny((far < 9).double()[None, None], 1.0, 0.1, 0.2)[0, 0]
    assert (far[found] - 9).abs().max() < 1.3
    assert 40 < found.sum() < 75


@pytest.mark.parametrize(
    ("shape", "low", "high", "named"),
    [((1, 3, 9, 9), 0.1, 0.2, "images"), ((1, 1, 9, 3), 0.1, 0.2, "images"), ((1, 1, 9, 9), 0.3, 0.2, "low, high")],
)
def test_what_does_not_fit_is_named(shape, low, high, named):
    with pytest.raises(ValueError, match=named):
        canny(torch.zeros(shape), 1.0, low, high)
