"""Delta correction: exact at γ = 1, dense at one query in γ, and what it wins back in a trained model."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.core.layout import Layout

CAUSAL = Layout(causal=True)


def draw(n: int, heads: int = 3, d: int = 11, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, heads, n, d, generator=generator, dtype=torch.float64) for _ in range(3)]


def test_gamma_one_is_dense_attention():
    """With γ = 1 the corrected output is dense attention, whatever the sparse mechanism."""
    q, k, v = draw(97)
    got = regard.build("delta", of="window(size=3)", gamma=1)(q, k, v, CAUSAL)
    torch.testing.assert_close(got, regard.build("softmax")(q, k, v, CAUSAL), atol=1e-12, rtol=1e-12)


def test_anchors_are_dense_and_groups_share_their_correction():
    """Every γ-th row is the dense row; the other rows differ from the sparse ones by their anchor's difference."""
    q, k, v = draw(89)
    sparse, dense = regard.build("window", size=5)(q, k, v, CAUSAL), regard.build("softmax")(q, k, v, CAUSAL)
    got = regard.build("delta", of="window(size=5)", gamma=13)(q, k, v, CAUSAL)
    for anchor in range(0, 89, 13):
        torch.testing.assert_close(got[:, :, anchor], dense[:, :, anchor], atol=1e-12, rtol=1e-12)
        group = slice(anchor, anchor + 13)
        shift = (dense - sparse)[:, :, anchor, None]
        torch.testing.assert_close(got[:, :, group], sparse[:, :, group] + shift, atol=1e-12, rtol=1e-12)


def test_dense_scores_are_one_in_gamma():
    """The dense rows cost 1/γ of dense attention, to 10%."""
    n, gamma = 8192, 64
    shape = regard.Shape(n, head_dim=64)
    corrected = regard.build("delta", of="window(size=128, sinks=4)", gamma=gamma).cost(shape, CAUSAL).flops
    sparse = regard.build("window", size=128, sinks=4).cost(shape, CAUSAL).flops
    share = (corrected - sparse) / regard.build("softmax").cost(shape, CAUSAL).flops * gamma
    assert share == pytest.approx(1, abs=0.1)
