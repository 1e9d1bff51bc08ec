"""PSMNet: its size, its expectation, its volume, any size of image."""

import pytest
import torch

from regard.networks.vision.psmnet import PSMNet, expected, stereo_loss, volume_of


def test_the_size(record_property):
    """As many parameters as the authors' network."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in PSMNet().parameters())
    record_property("parameters", f"{count:,}")
    assert count == 5_224_768


def test_a_sure_cost_gives_its_disparity():
    """The expectation is exact where one disparity has all of the likeness, and between two it is their mean."""
    truth = torch.randint(13, (2, 1, 5, 7), generator=torch.Generator().manual_seed(0))
    costs = torch.full((2, 13, 5, 7), -1e4, dtype=torch.float64).scatter_(1, truth, 0.0)
    assert torch.equal(expected(costs), truth.double())
    two = torch.full((1, 6, 1, 1), -1e4, dtype=torch.float64)
    two[:, [1, 4]] = 0.0
    assert expected(two).item() == 2.5


def test_the_volume_pairs_each_cell_with_those_to_its_left():
    left, right = (torch.arange(1.0, 6).view(1, 1, 1, 5) + by for by in (0, 10))
    volume = volume_of(left, right, 7)
    assert volume.shape == (1, 2, 7, 1, 5)
    assert volume[0, :, 2, 0].tolist() == [[0, 0, 3, 4, 5], [0, 0, 11, 12, 13]]
    assert volume[0, :, 5].abs().sum() == 0


@pytest.mark.parametrize("size", [(17, 30), (32, 16)])
def test_any_image_and_three_disparities_in_training(size):
    torch.manual_seed(0)
    net, (left, right) = PSMNet(8), torch.randn(2, 2, 3, *size).unbind(1)
    left, right = left[:1], right[:1]
    assert net.eval()(left, right).shape == (1, 1, *size)
    found = net.train()(torch.cat((left, right)), torch.cat((right, left)))
    assert [each.shape for each in found] == [(2, 1, *size)] * 3
    loss = stereo_loss(found, torch.ones_like(found[0]), torch.ones_like(found[0], dtype=torch.bool))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_images_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="disparities: got 6, want a multiple of 4"):
        PSMNet(6)
    with pytest.raises(ValueError, match="right: got shape"):
        PSMNet(8)(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))
