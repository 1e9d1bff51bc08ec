"""PSMNet: its volume, any size of image."""

import pytest
import torch

from regard.networks.vision.psmnet import PSMNet, stereo_loss, volume_of


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
