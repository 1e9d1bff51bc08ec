"""Residual attention networks: any size of image."""

import pytest
import torch

from regard.networks.vision.residual_attention import ResidualAttentionNetwork


def test_any_image_and_other_layers():
    torch.manual_seed(0)
    assert ResidualAttentionNetwork(56, 5, 8).eval()(torch.randn(1, 3, 35, 20)).shape == (1, 5)
    with pytest.raises(ValueError, match="layers: got 50, want one of 56, 92"):
        ResidualAttentionNetwork(50)
