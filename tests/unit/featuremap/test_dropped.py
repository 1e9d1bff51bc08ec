"""Dropped paths: which samples go without which branch in training, and that none does in evaluation."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regard
from regard.core.layout import Layout
from regard.featuremap.parts.dropped import Dropped, dropped
from regard.networks.vision.piip import PIIP, Branch, Crossed, Injector, Layer


@settings(max_examples=5, deadline=None)
@given(shape=st.sampled_from([(), (3,), (2, 5), (2, 3, 5)]), share=st.sampled_from([0.125, 0.5]))
def test_samples_lose_a_branch_whole_or_have_it_raised(shape, share):
    torch.manual_seed(0)
    branch = torch.randn(2000, *shape, dtype=torch.float64).abs() + 0.1
    out = dropped(branch, share, training=True).flatten(1) if shape else dropped(branch, share, training=True)[:, None]
    ratio = out / branch.reshape(2000, -1)
    gone = (ratio == 0).all(1)
    torch.testing.assert_close(ratio[~gone], torch.full_like(ratio[~gone], 1 / (1 - share)), rtol=0, atol=1e-12)
    assert abs(gone.double().mean().item() - share) < 5 * (share * (1 - share) / 2000) ** 0.5
    assert torch.equal(dropped(branch, share, training=False), branch)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_another_share_is_named(share):
    with pytest.raises(ValueError, match="share"):
        Dropped(share)


def test_a_layer_drops_attention_and_perceptron_apart():
    """Each image in training has one of the four sums of what is kept, raised; all four come up."""
    torch.manual_seed(0)
    layer = Layer(8, 2, drop=0.5).double().train()
    x = torch.randn(1, 6, 8, dtype=torch.float64).expand(64, -1, -1)
    wanted = []
    for near, far in itertools.product((0, 2), repeat=2):
        y = x[:1] + near * layer.gamma1 * layer.attention(layer.norm1(x[:1]), Layout(grid=(2, 3)))
        wanted.append(y + far * layer.gamma2 * layer.inner(layer.norm2(y)))
    away = (layer(x, (2, 3))[:, None] - torch.cat(wanted)).abs().amax((2, 3))
    assert away.amin(1).max() < 1e-9
    assert len(away.argmin(1).unique()) == 4


def test_an_exchange_drops_its_perceptron_alone():
    torch.manual_seed(0)
    exchange = Injector(8, Crossed(8, 2), 0.999).double().train()
    torch.nn.init.ones_(exchange.gamma)
    torch.nn.init.ones_(exchange.tau)
    x, y, sizes = (
        torch.randn(3, 6, 8, dtype=torch.float64),
        torch.randn(3, 5, 8, dtype=torch.float64),
        ((2, 3), (1, 5)),
    )
    kept = x + exchange.attention(exchange.own(x), exchange.other(y), sizes)
    torch.testing.assert_close(exchange(x, y, sizes), kept, rtol=0, atol=1e-12)
    assert (exchange.eval()(x, y, sizes) - kept).abs().max() > 1e-3


def test_pyramids_have_the_authors_shares():
    with torch.device("meta"):
        net = PIIP("TSB")
        attention = [
            layer.dropped.share for layer in regard.neck("gold_yolo(attention=(3, 2))")((2, 4, 3, 5), out=4).high
        ]
    assert [{layer.dropped.share for layer in layers} for layers in net.layers] == [{0.15}, {0.05}, {0.05}]
    assert {each.dropped.share for each in net.modules() if isinstance(each, Injector)} == {0.4}
    assert attention == [0.0, 0.05, 0.1]
    with pytest.raises(ValueError, match="share"):
        PIIP((Branch(32, 1, 2, 2), Branch(16, 1, 1, 3, 0, 1.5)), heads=2, steps=1)
