"""Attention through a small matrix or a few agents: exact products, rows that sum to one, cost linear in the length."""

from __future__ import annotations

import pytest
import torch

import regard


def draw(n: int, m: int):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, size, 7, generator=generator, dtype=torch.float64) for size in (n, m, m)]


def test_with_scaling_efficient_attention_is_the_plain_product():
    """With scaling the output is (Q Kᵀ / m) V, to 1e-12."""
    q, k, v = draw(13, 29)
    got = regard.build("efficient", normaliser="scaling")(q, k, v)
    torch.testing.assert_close(got, (q @ k.mT / 29) @ v, atol=1e-12, rtol=1e-12)


def test_with_softmax_the_implied_rows_sum_to_one():
    """Softmax over channels and over positions makes rows that sum to one, read out by the identity."""
    q, k, _ = draw(13, 29)
    rows = regard.build("efficient")(q, k, torch.eye(29, dtype=torch.float64).expand(2, 3, -1, -1))
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 3, 13, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(rows, q.softmax(3) @ k.softmax(2).mT, atol=1e-12, rtol=1e-12)


def test_agent_attention_is_the_product_of_two_softmax_matrices():
    """The output is that of the two explicit softmax matrices around the pooled queries, to 1e-12."""
    q, k, v = draw(35, 35)
    agents = q.unflatten(2, (5, 7)).mean(3)
    scale = 7**-0.5
    want = (q @ agents.mT * scale).softmax(-1) @ ((agents @ k.mT * scale).softmax(-1) @ v)
    torch.testing.assert_close(regard.build("agent", agents=5)(q, k, v), want, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", ["efficient", "agent", "linear"])
def test_twice_the_tokens_cost_twice(name):
    """Counted FLOPs double with the length."""
    costs = [regard.build(name).cost(regard.Shape(n), regard.Layout()).flops for n in (8192, 16_384)]
    assert costs[1] == 2 * costs[0]
