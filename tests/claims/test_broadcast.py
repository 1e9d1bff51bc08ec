"""Context Broadcasting: the equation, what it refuses, and what it does to attention on digits."""

from math import log
from statistics import mean

import pytest
import torch

from claims.on_digits import accuracy, digits
from regard.core.layout import Layout
from regard.networks.lm import Config
from regard.networks.vision.broadcast import BroadcastViT, ContextBroadcast, attention_entropy
from regard.networks.vision.vit import ViT

CONFIG = Config(10, 32, "softmax*3", heads=2, rotary_base=None)


def test_each_token_takes_the_mean():
    """CB is the product with (I + 11ᵀ/n) / 2, CB_S with I + λ 11ᵀ/n in each channel; padding counts for nothing."""
    x, uniform = torch.randn(2, 5, 7, dtype=torch.float64), torch.full((5, 5), 1 / 5, dtype=torch.float64)
    torch.testing.assert_close(ContextBroadcast()(x), (torch.eye(5) + uniform) / 2 @ x)
    scaled = ContextBroadcast(7).double()
    torch.testing.assert_close(scaled(x), x)
    torch.nn.init.normal_(scaled.scale)
    torch.testing.assert_close(scaled(x), x + scaled.scale * (uniform @ x))
    keys = torch.tensor([[True, False, True, True, False], [True] * 5])
    for module in (ContextBroadcast(), scaled):
        found = module(x, Layout(key_mask=keys))
        torch.testing.assert_close(found[0, keys[0]], module(x[:1, keys[0]])[0])
        torch.testing.assert_close(found[1], module(x)[1])


@torch.no_grad()
def test_parameters_and_starts():
    """CB has no parameter more than the transformer, CB_S one for each channel of a layer and starts as it."""
    plain, images = ViT(CONFIG, (8, 8), 2), torch.rand(2, 1, 8, 8)
    broadcast, scaled = BroadcastViT(CONFIG, (8, 8), 2), BroadcastViT(CONFIG, (8, 8), 2, scaled=True)
    assert broadcast.parameter_count == plain.parameter_count
    assert scaled.parameter_count == plain.parameter_count + 3 * 32
    torch.testing.assert_close(scaled(images), plain(images))
    assert not torch.allclose(broadcast(images), plain(images))


@torch.no_grad()
def test_entropy_by_hand():
    """Attention to all tokens alike has entropy log n; the model's own is that of its dense weights."""
    model, images = ViT(CONFIG, (8, 8), 2).double(), torch.rand(2, 1, 8, 8, dtype=torch.float64)
    layer = model.layers[0]
    q, k, _ = layer.attention.projection(*[layer.norms[0](model.embed(images))] * 2)
    weights = (q @ k.mT / 4).softmax(-1)
    torch.testing.assert_close(attention_entropy(model, images)[0], -(weights * weights.log()).sum(-1).mean())
    for layer in model.layers:
        layer.attention.projection.q.weight.zero_()
    torch.testing.assert_close(attention_entropy(model, images), torch.full((3,), log(16), dtype=torch.float64))


@pytest.mark.slow
def test_entropy_and_accuracy_on_digits(record_property):
    """Digits, 3 seeds: accuracies and mean entropies of attention are measured; the paper's effect is not seen here."""
    made = {"plain": ViT, "CB": BroadcastViT, "CB_S": lambda *sizes, **seed: BroadcastViT(*sizes, scaled=True, **seed)}
    entropies, accuracies = {}, {}
    for name, build in made.items():
        entropies[name], accuracies[name] = [], []
        for seed in range(3):
            model = build(CONFIG, (8, 8), 2, seed=seed)
            accuracies[name].append(accuracy(model, seed))
            entropies[name].append(attention_entropy(model, digits(seed)[2]).mean().item())
        record_property(f"{name} accuracy", ", ".join(f"{value:.1%}" for value in accuracies[name]))
        record_property(f"{name} entropy", ", ".join(f"{value:.2f}" for value in entropies[name]))
        assert mean(accuracies[name]) > 0.8


def test_what_is_not_in_the_paper_is_refused():
    x = torch.zeros(1, 3, 4)
    with pytest.raises(ValueError, match=r"layout\.causal: got True"):
        ContextBroadcast()(x, Layout(causal=True))
    with pytest.raises(ValueError, match=r"layout\.segments"):
        ContextBroadcast(4)(x, Layout(segments=torch.zeros(1, 3, dtype=torch.int64)))
