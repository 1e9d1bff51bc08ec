"""Scores of other kinds, and rows that are scaled, gated and signed: their limits and what they are for."""

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.core.layout import Layout

CAUSAL, EXACT = Layout(causal=True), {"atol": 1e-12, "rtol": 0}


def draw(n=37, heads=2, dim=8, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(1, heads, n, dim, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("causal", [False, True])
def test_gates_and_affine_rows_have_softmax_as_their_limit(causal):
    """A gate of one, and α = 1 with β = 0, are softmax attention; a gate of zero silences the head."""
    q, k, v = draw()
    layout, want = Layout(causal=causal), F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    ones = torch.ones(1, 2, 37, dtype=torch.float64)
    torch.testing.assert_close(regard.build("gated")(q, k, v, layout, gate=ones), want, **EXACT)
    assert regard.build("gated")(q, k, v, layout, gate=0 * ones).abs().max() == 0
    torch.testing.assert_close(regard.build("affine_scaled")(q, k, v, layout, alpha=ones, beta=0 * ones), want, **EXACT)
    weights = regard.build("affine_scaled").weights(q, k, layout, alpha=0.5 * ones, beta=0.25 * ones)
    seen = torch.arange(1, 38) if causal else torch.full((37,), 37)
    torch.testing.assert_close(weights.sum(-1), (0.5 + 0.25 * seen).double().expand(1, 2, -1), **EXACT)


def test_cog_weights_have_both_signs_and_sum_to_one():
    """Cog attention: absolute values sum to one, negative weights are there, and scores of one sign are softmax."""
    q, k, v = draw()
    weights = regard.build("cog").weights(q, k, CAUSAL)
    torch.testing.assert_close(weights.abs().sum(-1), torch.ones(1, 2, 37, dtype=torch.float64), **EXACT)
    assert (weights < 0).double().mean() > 0.1
    want = F.scaled_dot_product_attention(q.abs(), k.abs(), v, is_causal=True)
    torch.testing.assert_close(regard.build("cog")(q.abs(), k.abs(), v, CAUSAL), want, **EXACT)


def test_tapa_has_no_trend_with_distance():
    """TAPA: for independent q and k the mean score does not move with distance; rotary scores of like vectors do."""
    from regard.projections.rotary import Rotary

    torch.manual_seed(0)
    n, pairs, dim = 513, 4096, 64
    far = torch.arange(n, dtype=torch.float64)
    q, k = (torch.randn(pairs, dim, dtype=torch.float64) for _ in range(2))
    amplitude = (q[:, :32] * k[:, :32]).sum(-1) / 32**0.5
    phase = (q[:, 32:] * k[:, 32:]).sum(-1) / 32**0.5
    scores = amplitude[:, None] * torch.cos(2 * torch.pi * far**0.1 * phase[:, None])

    def slope(x):
        """Of the mean over pairs against distance, and its standard error over pairs."""
        centred = far - far.mean()
        each = (x * centred).sum(-1) / centred.square().sum()
        return each.mean().item(), each.std().item() / len(x) ** 0.5

    mean, error = slope(scores)
    assert abs(mean) < 3 * error
    single = regard.build("tapa")
    tokens = torch.randn(1, 1, n, dim, dtype=torch.float64)
    first = single.score(tokens, n, Layout())
    q0, k0 = tokens[:, :, :1], torch.randn(1, 1, n, dim, dtype=torch.float64)
    from regard.kernels.tiled import Span

    got = first(q0, k0, Span(slice(0, 1), slice(0, n)))[0, 0, 0]
    a, p = ((q0[..., s] * k0[..., s]).sum(-1)[0, 0] / 32**0.5 for s in (slice(0, 32), slice(32, 64)))
    torch.testing.assert_close(got, a * torch.cos(2 * torch.pi * far**0.1 * p))
    like = torch.ones(1, 1, n, dim)
    turned = Rotary(dim)(like, torch.arange(n)[None]).double()
    assert abs(torch.corrcoef(torch.stack([far, (turned[0, 0, :1] * turned[0, 0]).sum(-1)]))[0, 1]) > 0.5


def test_neural_scores_are_a_network_on_the_pair():
    """Neural attention: the factored, tiled form equals a network on the concatenated query and key, bit for pair."""
    q, k, v = draw(n=300)
    mechanism = regard.build("neural", heads=2, head_dim=8, hidden=5).double()
    joined = torch.cat([q[:, :, :, None].expand(-1, -1, -1, 300, -1), k[:, :, None].expand(-1, -1, 300, -1, -1)], -1)
    first = torch.cat([mechanism.query, mechanism.key], 1)
    hidden = torch.relu(torch.einsum("bhijd,hde->bhije", joined, first) + mechanism.bias[:, None, None])
    scores = torch.einsum("bhije,he->bhij", hidden, mechanism.out)
    scores = scores.masked_fill(torch.ones(300, 300, dtype=torch.bool).triu(1), -torch.inf)
    want = torch.softmax(scores, -1) @ v
    torch.testing.assert_close(mechanism(q, k, v, CAUSAL), want, atol=1e-10, rtol=1e-9)
