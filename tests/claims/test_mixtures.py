"""Mixtures of branches and the networks made of them: weights, limits and published counts, exactly."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import regard
from regard.featuremap.mixtures.switchable import SwitchableAtrous
from regard.networks.vision.a2n import A2N
from regard.networks.vision.han import HAN, LayerAttention

EXACT = {"atol": 1e-9, "rtol": 0}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def drawn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def looped(m, x):
    """Split attention group by group and split by split, as the paper's figure has it: cardinal groups apart."""
    groups, splits = m.groups, m.splits
    wide = m.out // groups
    maps = torch.relu(m.norm(m.convolution(x)))
    apart = [[maps[:, (r * groups + g) * wide :][:, :wide] for r in range(splits)] for g in range(groups)]
    pooled = torch.cat([sum(split.mean((2, 3), keepdim=True) for split in group) for group in apart], 1)
    hidden = torch.relu(m.hidden_norm(m.down(pooled)))
    found = []
    for g, group in enumerate(apart):
        rows = m.hidden // groups
        up = m.up.weight.flatten(1)[g * splits * wide :][: splits * wide]
        numbers = hidden.flatten(1)[:, g * rows :][:, :rows] @ up.T + m.up.bias[g * splits * wide :][: splits * wide]
        exps = [numbers[:, r * wide :][:, :wide].exp() for r in range(splits)]
        shares = [e / sum(exps) for e in exps] if splits > 1 else [exps[0] / (1 + exps[0])]
        found.append(sum(s[:, :, None, None] * split for s, split in zip(shares, group, strict=True)))
    return torch.cat(found, 1)


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


def test_the_sizes_of_a2n(record_property):
    """A2N has the paper's parameters: 1,036 thousand for ×2 and ×3, 1,047 thousand for ×4."""
    with torch.device("meta"):
        counts = [count(A2N(scale)) for scale in (2, 3, 4)]
    record_property("parameters", counts)
    assert counts == [1_036_443, 1_036_443, 1_047_459]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a2n_weighs_its_branches_by_the_image(scale):
    """In every block the two shares sum to one and differ between images; the image grows by the scale."""
    torch.manual_seed(0)
    net, images = A2N(scale, blocks=2).double(), drawn(2, 3, 7, 5)
    shares = net.shares(images)
    assert shares.shape == (2, 2, 2)
    torch.testing.assert_close(shares.sum(2), torch.ones(2, 2, dtype=torch.float64), **EXACT)
    assert (shares[0] - shares[1]).abs().min() > 1e-9
    assert net(images).shape == (2, 3, 7 * scale, 5 * scale)


def test_the_sizes_of_han(record_property):
    """HAN has the authors' 15,924,057 numbers, 24 of which are the fixed ones of two colour shifts, here no weights."""
    with torch.device("meta"):
        found = count(HAN())
    record_property("parameters", f"{found:,}")
    assert found + 24 == 15_924_057


def test_han_begins_without_its_attentions_and_is_no_rcan():
    """At the start both attentions are the identity on features; the convolutions that join them are there still."""
    torch.manual_seed(0)
    net, images = HAN(2, channels=16, groups=3, blocks=1, peak=1).double(), drawn(1, 3, 5, 7)
    start = net.first(images - net.mean)
    maps = net.maps(start)
    assert len(maps) == 4
    plain = start + net.both(torch.cat((maps[0], net.joined(torch.cat(maps, 1))), 1))
    torch.testing.assert_close(net(images), net.upsample(plain) + net.mean, **EXACT)
    rcan = net.upsample(start + maps[0]) + net.mean
    assert (net(images) - rcan).abs().max() > 1e-3


def test_layers_least_alike_weigh_most():
    """Attention between layers is the softmax of negated products: a layer weighs itself least among its like."""
    attention, maps = LayerAttention().double(), drawn(2, 4, 3, 2, 5)
    with torch.no_grad():
        attention.gamma.fill_(1.0)
    tokens = maps.flatten(2)
    products = tokens @ tokens.mT
    weights = torch.softmax(products.amax(-1, keepdim=True) - products, -1)
    torch.testing.assert_close(attention(maps), maps + (weights @ tokens).view_as(maps), **EXACT)
    assert (weights.argmin(-1) == torch.arange(4)).all()
