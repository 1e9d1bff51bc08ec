"""L²ViT: linear attention with a clamped sum, and the convolutions that concentrate it."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.claims.vision import four_times
from regard.core.layout import Layout


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("causal", [False, True])
def test_keys_and_values_first_is_queries_and_keys_first(causal, scale):
    """φ(q)(φ(k)ᵀ v) equals (φ(q) φ(k)ᵀ) v, gradients too, where the clamp of 100 holds and where it does not."""
    torch.manual_seed(0)
    q, k, v = (scale * torch.randn(2, 3, 101, 7, dtype=torch.float64) for _ in range(3))
    mechanism = regard.build("l2vit", heads=3, head_dim=7).double()
    with torch.no_grad():
        mechanism.temperature.copy_(torch.tensor([0.5, 1.0, 2.0]))
    leaves = [x.requires_grad_() for x in (q, k, v)] + [mechanism.temperature]
    products = q.relu() @ k.relu().mT
    products = products.tril() if causal else products
    sums = products.sum(-1, keepdim=True)
    assert (sums < 100).any() if scale < 1 else (sums > 100).any()
    want = mechanism.temperature[:, None, None] * (products @ v) / sums.clamp(min=100)
    found = [
        [out, *torch.autograd.grad(out.square().sum(), leaves)]
        for out in (mechanism(q, k, v, Layout(causal=causal)), want)
    ]
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-7)


def test_four_times_the_pixels_cost_four_times():
    """FLOPs of the attention, and counted of a network from 1,024 to 4,096 tokens, windows included: 4.0 ± 0.2."""
    found = four_times.measure()
    assert found["attention"] == 4
    assert abs(found["network"] - 4) < 0.2


def test_bad_sizes_are_refused():
    """Other heads than the temperature's, and a clamp at nothing, have clear errors."""
    q = torch.zeros(1, 2, 3, 16)
    with pytest.raises(ValueError, match="q: got 2 heads of 16, want 4 heads of 16"):
        regard.build("l2vit")(q, q, q, Layout())
    with pytest.raises(ValueError, match="least: got 0"):
        regard.build("l2vit", least=0)
