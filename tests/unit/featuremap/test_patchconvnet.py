"""PatchConvNet: a query for each class."""

import pytest
import torch

from regard.networks.vision.patchconvnet import PatchConvNet


def test_a_query_for_each_class_reads_cells_alone():
    torch.manual_seed(0)
    net = PatchConvNet(classes=5, per_class=True, width=16, depth=1).double()
    images = torch.randn(2, 3, 40, 19, dtype=torch.float64)
    features = net.features(images)
    assert net(images).shape == (2, 5)
    torch.testing.assert_close(net.pool.map(features).sum((3, 4)), torch.ones(2, 1, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="size: got 'M', want one of S60, S120"):
        PatchConvNet("M")
