"""Sigmoid self-attention: its bias keeps the output's size, and no row needs a statistic."""

import math

import pytest
import torch

from regard.core.layout import Layout
from regard.kernels import tiled
from regard.mechanisms.scored.sigmoid import Sigmoid

LENGTHS = (64, 256, 1024, 4096)


def norms(bias):
    """Mean norm of an initial layer's outputs at each length; hidden states share a mean, as embeddings do."""
    found = []
    for n in LENGTHS:
        torch.manual_seed(n)
        hidden = torch.randn(n, 64) + torch.randn(64)
        q, k, v = (hidden @ torch.randn(64, 64) * 0.02 for _ in range(3))
        out = Sigmoid(bias(n))(q[None, None], k[None, None], v[None, None])
        found.append(out.norm(dim=-1).mean().item())
    return found


def slope(values):
    """Growth exponent between the shortest and the longest length."""
    return math.log(values[-1] / values[0]) / math.log(LENGTHS[-1] / LENGTHS[0])


@pytest.mark.parametrize("bias", [lambda n: -math.log(n), lambda n: None])
def test_with_the_bias_the_initial_norm_does_not_depend_on_the_length(bias):
    assert abs(slope(norms(bias))) < 0.1


def test_without_it_the_norm_grows_with_the_length():
    assert 0.9 < slope(norms(lambda n: 0.0)) < 1.1


@pytest.mark.parametrize("causal", [False, True])
def test_tiled_equals_dense_forward_and_backward(causal):
    torch.manual_seed(3)
    layout, mechanism = Layout(causal=causal), Sigmoid()
    q, k, v = (torch.randn(2, 3, 523, 17, requires_grad=True) for _ in range(3))
    fast, dense = mechanism(q, k, v, layout), mechanism.weights(q, k, layout) @ v
    assert (fast - dense).abs().max() < 1e-5
    for mine, theirs in zip(
        *(torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (fast, dense)), strict=True
    ):
        assert (mine - theirs).abs().max() < 1e-5


def test_no_row_statistics_are_kept_for_the_backward_pass():
    kept = []
    q, k, v = (torch.randn(1, 3, 307, 17, requires_grad=True) for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tuple(tensor.shape)) or tensor, lambda x: x
    ):
        tiled.attend(q, k, v, normaliser=tiled.Sigmoid(-5.0))
        assert (1, 3, 307) not in kept
        tiled.attend(q, k, v)
        assert (1, 3, 307) in kept
