"""Twins: windows, summaries, what a pair of layers reaches, the sizes of SVT-S, and digits."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from regard.networks.vision.twins import Twins, TwinsLayer, local, summarised
from regard.projections.base import split_heads
from regard.train.fit import Recipe, fit


def test_windows_are_attention_in_each_window():
    """Local attention over 12 × 8 tokens equals fused attention in each 4 × 4 window."""
    torch.manual_seed(0)
    layer = local(16, 2, (12, 8), 4).double()
    x = torch.randn(2, 96, 16, dtype=torch.float64)
    windows = x.view(2, 3, 4, 2, 4, 16).transpose(2, 3).reshape(12, 16, 16)
    q, k, v = (split_heads(m(windows), 2) for m in (layer.projection.q, layer.projection.k, layer.projection.v))
    want = layer.projection.merge(F.scaled_dot_product_attention(q, k, v))
    want = want.view(2, 3, 2, 4, 4, 16).transpose(2, 3).reshape(2, 96, 16)
    torch.testing.assert_close(layer(x), want, atol=1e-9, rtol=0)


def test_a_pair_of_layers_reaches_everything():
    """Every output depends on every token after a window layer and a summary layer; not after the window layer."""
    torch.manual_seed(0)
    first, second = TwinsLayer(local(8, 2, (8, 8), 4), 8), TwinsLayer(summarised(8, 2, (8, 8), 4), 8)
    x = torch.randn(1, 64, 8)
    for layers, whole in (((first,), False), ((first, second), True)):
        run = torch.nn.Sequential(*layers)
        jacobian = torch.autograd.functional.jacobian(lambda tokens, run=run: run(tokens)[0].sum(1), x)
        assert bool((jacobian[:, 0].abs().sum(2) > 0).all()) == whole


def test_the_sizes_of_svt_s(record_property):
    """SVT-S has 24 million parameters, within 2%; a projection's own formula is its count."""
    count = sum(p.numel() for p in Twins().parameters())
    record_property("parameters of SVT-S", f"{count:,}")
    assert abs(count / 24e6 - 1) < 0.02
    projection = summarised(16, 2, (8, 8), 4).projection
    assert projection.parameter_count == sum(p.numel() for p in projection.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("window", [2, None])
def test_digits(window, record_property):
    """A two-stage SVT (and PCPVT) tells held-out digits apart: at least 97%."""
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    sizes = {"widths": (32, 64), "heads": (2, 4), "depths": (2, 2), "ratios": (2, 1), "patches": (1, 2)}
    model = Twins(10, (8, 8), **sizes, window=window, channels=1)

    def loss(ready, generator):
        rows = train[torch.randint(len(train), (64,), generator=generator)]
        return F.cross_entropy(ready(images[rows]), labels[rows])

    fit(model, loss, Recipe(600, 2e-3))
    with torch.no_grad():
        accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
    record_property("accuracy", f"{accuracy:.1%}")
    assert accuracy >= 0.97
