"""A whole layer as one matrix, what is attributed through it, and the ranks of such matrices."""

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.analysis.implicit_attention import attribution, block_rank, implicit_attention, reproduced
from regard.core.layout import Layout
from regard.networks import LM, Config

CAUSAL = Layout(causal=True)
KINDS = ["gla", "retnet", "mamba2", "mamba", "gated_deltanet", "deltanet", "softmax"]


def layer(kind, kv_heads=None):
    torch.manual_seed(0)
    config = Config(vocabulary=8, width=24, heads=4, kv_heads=kv_heads, layers=kind)
    return config.attention(kind).double()


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_matrix_of_a_layer_is_the_layer(kind, kv_heads):
    """Mechanism, convolution, activation, norm and gate as one matrix reproduce the layer; nothing is above it."""
    found, x = layer(kind, kv_heads), torch.randn(2, 19, 24, dtype=torch.float64)
    for weight in found.output.parameters():
        torch.nn.init.normal_(weight)
    if found.convolution is not None and found.convolution.bias is not None:
        torch.nn.init.normal_(found.convolution.bias)
    torch.testing.assert_close(reproduced(found, x), found(x, CAUSAL), atol=1e-9, rtol=1e-7)
    matrix = implicit_attention(found, x)
    assert matrix.shape == (2, *((24, 1) if kind == "mamba" else (4, 6)), 19, 19)
    assert matrix.triu(1).abs().max() == 0


@pytest.mark.parametrize("kind", ["gla", "retnet", "mamba2", "deltanet", "gated_deltanet", "softmax"])
def test_ranks_are_those_of_the_state(kind):
    """What passes from past to future has at most the rank of the state; that of softmax attention has more."""
    torch.manual_seed(0)
    heads, n, d = 2, 48, 6
    q, k = (torch.randn(1, heads, n, d, dtype=torch.float64) for _ in range(2))
    mechanism = regard.build(kind, **({"heads": heads} if kind == "mamba2" else {})).double()
    signals = {}
    for name, spec in mechanism.signals.items():
        noise = torch.randn(1, heads, n, *spec.size(d, d), dtype=torch.float64)
        signals[name] = -noise.abs() / 20 if spec.high == 0 else noise.sigmoid()
    weights = mechanism.weights(q, F.normalize(k, dim=-1), CAUSAL, **signals)
    ranks = torch.stack([block_rank(weights, cut) for cut in (12, 24, 36)])
    assert (ranks <= d).all() == (kind != "softmax")


def test_layers_that_are_no_such_matrix_are_refused():
    with pytest.raises(
        ValueError, match=r"layer: got RWKV6, whose norm is centred, want one that keeps channels apart"
    ):
        implicit_attention(layer("rwkv6"), torch.randn(1, 4, 24, dtype=torch.float64))
    with pytest.raises(ValueError, match="layer"):
        implicit_attention(layer("efficient"), torch.randn(1, 4, 24, dtype=torch.float64))


def test_attribution_of_a_linear_layer_is_its_matrix():
    """One layer, a score that is one channel of one token before the output matrix: R − I is Â ⊙ v, where positive."""
    torch.manual_seed(0)
    found, x = layer("gla"), torch.randn(1, 9, 24, dtype=torch.float64)
    with torch.no_grad():
        found.projection.out.weight.copy_(torch.eye(24))
    relevance = attribution(found, lambda: found(x, CAUSAL)[0, 7, 3])
    matrix, values = implicit_attention(found, x)[0, 0, 3, 7], found.projection(x, x)[2][0, 0, :, 3]
    want = torch.eye(9, dtype=torch.float64)
    want[7] += (matrix * values).clamp(min=0) / 24
    torch.testing.assert_close(relevance[0], want, atol=1e-12, rtol=0)
    assert "forward" not in vars(found)


def test_attribution_refuses_what_it_would_misread():
    """Padding, a model without attention, and bidirectional calls; the layers are as before afterwards."""
    model, ids = LM(Config(8, 24, "gla", heads=4), seed=0), torch.randint(8, (1, 9))
    with pytest.raises(ValueError, match=r"score: got a call under .*want one of causal self-attention"):
        attribution(model, lambda: model(ids, key_mask=torch.ones(1, 9, dtype=torch.bool)).sum())
    found = layer("softmax")
    with pytest.raises(ValueError, match="score: got a call under"):
        attribution(found, lambda: found(torch.randn(1, 5, 24, dtype=torch.float64)).sum())
    with pytest.raises(ValueError, match="model: got Linear"):
        attribution(torch.nn.Linear(2, 2), lambda: torch.zeros(()))
    assert "forward" not in vars(found)
