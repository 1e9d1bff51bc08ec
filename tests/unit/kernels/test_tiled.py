"""Self-attention needs no n × n memory: exact results and gradients, tile by tile."""

import pytest
import torch

from regard.core.layout import Layout
from regard.kernels import tiled


def textbook(q, k, v, causal):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(
            ~torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2]), -1e30
        )
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "m"), [(523, 523), (257, 601)])
def test_forward_and_gradients_match_dense_to_1e5(n, m, causal):
    torch.manual_seed(3)
    q, k, v = (torch.randn(2, 3, length, 17, requires_grad=True) for length in (n, m, m))
    upstream = torch.randn(2, 3, n, 17)
    got, want = tiled.attend(q, k, v, Layout(causal=causal)), textbook(q, k, v, causal)
    assert (got - want).abs().max() < 1e-5
    found, wanted = (torch.autograd.grad(out, (q, k, v), upstream) for out in (got, want))
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine - theirs).abs().max() < 1e-5


def test_any_score_with_parameters_trains_through_the_tiles():
    class Additive:
        """``s_ij = w · tanh(q_i + k_j)``: it has no product form, and a parameter."""

        def __init__(self, w):
            self.parameters = (w,)

        def __call__(self, q, k, span):
            return torch.tanh(q[:, :, :, None] + k[:, :, None]) @ self.parameters[0]

    torch.manual_seed(5)
    q, k, v = (torch.randn(1, 2, length, 5, dtype=torch.float64, requires_grad=True) for length in (281, 307, 307))
    w = torch.randn(5, dtype=torch.float64, requires_grad=True)
    got = tiled.attend(q, k, v, score=Additive(w))
    want = Additive(w)(q, k, None).softmax(-1) @ v
    assert (got - want).abs().max() < 1e-12
    leaves = (q, k, v, w)
    for mine, theirs in zip(*(torch.autograd.grad(out.square().sum(), leaves) for out in (got, want)), strict=True):
        assert (mine - theirs).abs().max() < 1e-10
