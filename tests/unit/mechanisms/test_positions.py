"""Mechanisms that look at positions alone: what they refuse, and what they compute by hand."""

import pytest
import torch

import regard
from regard.blocks.attention import Attention
from regard.core.layout import Layout
from regard.projections.values_only import ValuesOnly


def test_factored_weights_by_hand():
    """On a 2 × 3 torus A is α at the offset between cells; causal and padded entries are zero."""
    mechanism = regard.build("factored", heads=1, grid=(2, 3))
    q = torch.randn(1, 1, 6, 5)
    weights = mechanism.weights(q, q)[0, 0]
    alpha = mechanism.alpha[0].view(2, 3)
    for i in range(6):
        for j in range(6):
            assert weights[i, j] == alpha[(i // 3 - j // 3) % 2, (i - j) % 3]
    assert torch.equal(mechanism.weights(q, q, Layout(causal=True))[0, 0], weights.tril())


@pytest.mark.parametrize("name", ["factored", "positional"])
def test_what_q_and_k_hold_changes_nothing(name):
    """The output follows the values alone; parameters get gradients, queries and keys do not."""
    sizes = {"grid": (5, 7)} if name == "factored" else {"places": 35, "size": 3}
    mechanism = regard.build(name, heads=2, **sizes)
    v = torch.randn(3, 2, 11, 7)
    q, k = (torch.randn(3, 2, 11, 5, requires_grad=True) for _ in range(2))
    out = mechanism(q, k, v)
    assert torch.equal(out, mechanism(q * 100, k - 7, v))
    out.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in mechanism.parameters())
    assert all(x.grad is None or x.grad.abs().sum() == 0 for x in (q, k))


def test_bad_input_is_named():
    q, v = torch.randn(1, 2, 7, 5), torch.randn(1, 2, 7, 3)
    for mechanism in (regard.build("factored", heads=2, grid=(2, 3)), regard.build("positional", heads=2, places=6)):
        with pytest.raises(ValueError, match="k: got 7 tokens, want at most 6"):
            mechanism(q, q, v)
        with pytest.raises(ValueError, match="q: got 1 heads, want 2"):
            mechanism(q[:, :1, :5], q[:, :1, :5], v[:, :1, :5])
    with pytest.raises(ValueError, match="sine: got 3"):
        regard.build("positional", sine=3)
    with pytest.raises(ValueError, match="heads, grid: got 2"):
        regard.build("factored", heads=2, grid=(0, 3))


def test_a_layer_without_queries_and_keys():
    """`ValuesOnly` hosts them with two matrices, counted right, and decodes as it computes."""
    layer = Attention(regard.build("positional", heads=2, places=13, size=3), ValuesOnly(10, 2, 7)).double()
    x = torch.randn(2, 11, 10, dtype=torch.float64)
    assert sum(p.numel() for p in layer.projection.parameters()) == layer.projection.parameter_count
    state, parts = layer.start(2, dtype=torch.float64), []
    for part in (x[:, :4], x[:, 4:5], x[:, 5:]):
        out, state = layer.extend(part, state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), layer(x, Layout(causal=True)))
