"""Twins: windows, summaries, what a pair of layers reaches."""

import pytest
import torch

from regard.networks.stages.network import Stages
from regard.networks.vision.twins import design


def test_windows_and_summaries_alternate_as_in_the_published_pyramid():
    """Windows in the first, third … layer of each stage, positions behind its first layer."""
    made = design((3, 4), (8, 8), (2, 2), 2, (2, 1), patch=2)
    kinds = [[(block[0][0], "cpe" in block) for block in stage] for stage in made.blocks]
    assert kinds == [
        [("w", True), ("s", False), ("w", False)],
        [("w", True), ("s", False), ("w", False), ("s", False)],
    ]


@pytest.mark.parametrize("size", [(15, 22), (16, 16), (4, 4)])
def test_a_map_of_any_size_goes_through(size):
    """Sides that neither patches, windows nor summaries divide."""
    net = Stages(design((2, 2), (12, 20), (2, 4), 3, (4, 2), patch=2), 7).eval()
    images = torch.randn(3, 3, *size)
    out = net(images)
    assert out.shape == (3, 7)
    torch.testing.assert_close(net(images[1:2]), out[1:2], atol=1e-5, rtol=1e-5)
