"""Mixtures of branches and the networks made of them: equations and limits, on maps of any size."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import regard
from regard.claims.mixtures import looped
from regard.featuremap.mixtures.switchable import SwitchableAtrous
from regard.networks.vision.a2n import A2N
from regard.networks.vision.resnest import ResNeSt

EXACT = {"atol": 1e-9, "rtol": 0}


def drawn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=6, deadline=None)
@given(splits=st.integers(1, 4), groups=st.integers(1, 3), y=st.integers(1, 7), x=st.integers(1, 9))
def test_split_attention_equals_loops(splits, groups, y, x):
    """The block in which groups and splits are one tensor equals loops over both; the splits' weights sum to one."""
    torch.manual_seed(splits)
    c = 4 * splits * groups
    m = regard.mixture(f"split_attention(splits={splits}, groups={groups}, least=24)")(c).double().eval()
    maps = drawn(2, c, y, x)
    torch.testing.assert_close(m(maps), looped(m, maps), **EXACT)
    if splits > 1:
        weights = m.weights(maps, m.branches(maps))
        assert weights.shape == (2, splits, c, 1, 1)
        torch.testing.assert_close(weights.sum(1), torch.ones(2, c, 1, 1, dtype=torch.float64), **EXACT)


@settings(max_examples=5, deadline=None)
@given(y=st.integers(1, 9), x=st.integers(1, 9), stride=st.integers(1, 2))
def test_a_switchable_convolution_begins_as_the_convolution(y, x, stride):
    """Begun from a convolution it gives what that gives, S is one; S = 0 with Δ = 0 is the convolution at rate 3."""
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 7, 3, stride, 1, bias=False).double()
    m, maps = SwitchableAtrous.of(plain), drawn(2, 5, y, x)
    torch.testing.assert_close(m(maps), plain(maps), **EXACT)
    with torch.no_grad():
        m.switch.bias.zero_()
    torch.testing.assert_close(m(maps), F.conv2d(maps, plain.weight, stride=stride, padding=3, dilation=3), **EXACT)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_an_image_grows_by_the_scale(scale):
    torch.manual_seed(0)
    net, images = A2N(scale, blocks=2).double(), drawn(2, 3, 7, 5)
    assert net.shares(images).shape == (2, 2, 2)
    assert net(images).shape == (2, 3, 7 * scale, 5 * scale)


def test_another_number_of_layers_is_named():
    with pytest.raises(ValueError, match="layers: got 51, want one of 50, 101, 200, 269"):
        ResNeSt(51)
