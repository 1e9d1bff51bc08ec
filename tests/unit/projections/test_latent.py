"""Latent attention in both forms, and queries that are expanded instead of keys."""

import pytest
import torch

import regard
from regard.blocks.attention import Attention
from regard.core.build import build_text
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.projections.base import Grouped
from regard.projections.latent import ExpandedQueries, Latent
from regard.projections.rotary import Rotary

CAUSAL, WIDTH = Layout(causal=True), 24


def hidden(n=19):
    return torch.randn(2, n, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def extended(layer, x):
    state, parts = layer.start(2, dtype=torch.float64), []
    for part in x.split([8, 1, 1, 9], dim=1):
        out, state = layer.extend(part, state)
        parts.append(out)
    return torch.cat(parts, 1), state


@pytest.mark.parametrize("rotary", [0, 4])
@pytest.mark.parametrize("query_rank", [0, 10])
@pytest.mark.parametrize("mechanism", ["softmax", "sigmoid", "window(size=5)"])
def test_absorbed_is_expanded(rotary, query_rank, mechanism):
    """MLA: the absorbed form equals the expanded one, gradients too, in one call and token by token."""
    torch.manual_seed(0)
    expanded = Latent(WIDTH, 3, 6, 5, rotary, 7, query_rank).double()
    turn = Rotary(rotary) if rotary else None
    layers = [Attention(build_text(mechanism), p, turn) for p in (expanded, expanded.as_form("absorbed"))]
    want, got = (layer(hidden(), CAUSAL) for layer in layers)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(out.square().sum(), expanded.down.weight)[0] for out in (want, got)]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-10, rtol=0)
    for layer in layers:
        out, _ = extended(layer.double(), hidden())
        torch.testing.assert_close(out, want, atol=1e-10, rtol=0)


def test_latent_formulas():
    """MLA: parameters and cache by formula; a token's cache does not depend on the number of heads."""
    for heads in (2, 8):
        p = Latent(WIDTH, heads, 6, 5, 4, 7, 10)
        assert p.parameter_count == sum(x.numel() for x in p.parameters())
        absorbed = p.as_form("absorbed")
        assert absorbed.parameter_count == p.parameter_count
        assert absorbed.cached_numbers == 4 + 6
        layer = Attention(regard.build("softmax"), absorbed).double()
        _, state = extended(layer, hidden())
        assert state.bytes == 2 * 19 * 8 * absorbed.cached_numbers
    with pytest.raises(ValueError, match="rotary"):
        Latent(WIDTH, 2, 6, 5, 3, 7)
    with pytest.raises(ValueError, match="form"):
        Latent(WIDTH, 2, 6, 5, 4, 7, form="naive")  # pyright: ignore


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_expanded_queries_are_multi_head_attention(kv_heads):
    """EL-attention: attending to hidden states with expanded queries equals multi-head attention."""
    torch.manual_seed(0)
    plain = Grouped(Sizes(WIDTH, 4, kv_heads, 5, 7)).double()
    layers = [Attention(regard.build("softmax"), p) for p in (plain, ExpandedQueries(plain))]
    want, got = (layer(hidden(), CAUSAL) for layer in layers)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    out, state = extended(layers[1], hidden())
    torch.testing.assert_close(out, want, atol=1e-10, rtol=0)
    assert state.bytes == 2 * 19 * 8 * WIDTH
    assert ExpandedQueries(plain).parameter_count == plain.parameter_count
