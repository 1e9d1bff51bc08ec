"""Polynomials in the place of the exponential: exact products, falling errors, cost linear in the length."""

from __future__ import annotations

import argparse
import ast
import inspect
import math
import time

import pytest
import torch

import regard
from regard.core.layout import Layout
from regard.networks import LM, Config
from regard.train.fit import Recipe, fit

CAUSAL = Layout(causal=True)


def draw(n: int, d: int = 5):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(1, 2, n, d, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]


def explicit(products: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The n × n polynomial attention."""
    f = (1 + products + products.square() / 2).tril()
    return f / f.sum(-1, keepdim=True) @ v


def standard(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("name", ["based", "fastmax", "softmax_rnn"])
def test_the_recurrence_is_the_explicit_polynomial_attention(name):
    """Linear-time output and gradients equal the n × n polynomial attention to 1e-9."""
    q, k, v = draw(131)
    products = standard(q) @ standard(k).mT if name == "fastmax" else q @ k.mT * 5**-0.5
    for mine, wanted in zip(
        *(
            [out, *torch.autograd.grad(out.square().sum(), (q, k, v))]
            for out in (regard.build(name)(q, k, v, CAUSAL), explicit(products, v))
        ),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("name", ["based", "fastmax", "softmax_rnn"])
def test_twice_the_tokens_cost_twice(name):
    """FLOPs double from 4k to 8k, and the state stays."""
    costs = [regard.build(name).cost(regard.Shape(n, head_dim=16), CAUSAL) for n in (4096, 8192)]
    assert costs[1].flops == 2 * costs[0].flops
    assert costs[1].state_bytes == costs[0].state_bytes


def test_the_error_of_the_series_falls_with_its_order(record_property):
    """For |q·k| ≤ 2 the error is the first term left out, 2^(N+1)/(N+1)!, to a factor of 1.5: 6.1e-5 at N = 10."""
    s = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    errors = {}
    for order in (2, 4, 6, 8, 10, 12):
        series = sum(s**n / math.factorial(n) for n in range(order + 1))
        errors[order] = (series - s.exp()).abs().max().item()
        first = 2 ** (order + 1) / math.factorial(order + 1)
        assert first <= errors[order] < 1.8 * first
    record_property("figure", ", ".join(f"N = {order}: {error:.1e}" for order, error in errors.items()))
    assert errors[10] > 1e-5 > errors[12]


def test_higher_orders_come_nearer_to_softmax(record_property):
    """The outputs of orders 2 and 4 approach softmax attention, each by a factor of at least five."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 67, 4, dtype=torch.float64) for _ in range(3))
    q, k = q / q.norm(dim=-1, keepdim=True) * 2, k / k.norm(dim=-1, keepdim=True) * 2
    softmax = regard.build("softmax")(q, k, v, CAUSAL)
    errors = [(regard.build("softmax_rnn", order=n)(q, k, v, CAUSAL) - softmax).abs().max().item() for n in (2, 4, 6)]
    record_property("figure", f"orders 2, 4, 6: {', '.join(f'{error:.1e}' for error in errors)}")
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


def test_orders_that_cannot_be_are_refused():
    """Odd orders with a denominator, orders below one and states too large have clear errors."""
    for arguments, message in (({"order": 3}, "order: got 3"), ({"order": 0}, "order: got 0")):
        with pytest.raises(ValueError, match=message):
            regard.build("softmax_rnn", **arguments)
    q = torch.zeros(1, 1, 3, 64)
    with pytest.raises(ValueError, match=r"order: got 4 with 64 channels, want at most 65,536 features"):
        regard.build("softmax_rnn", order=4)(q, q, q, CAUSAL)
    with pytest.raises(ValueError, match="order: got 3, want 1 or 2"):
        regard.build("fastmax", order=3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("order", [1, 2])
def test_fastmax_is_the_explicit_polynomial_attention(order, causal):
    """Fastmax, p = 1 and 2, causal and bidirectional: output and gradients as n × n to 1e-9, none negative."""
    q, k, v = draw(131)
    products = standard(q) @ standard(k).mT / (5 if order == 1 else 1)
    f = sum(products**power / math.factorial(power) for power in range(order + 1))
    f = f.tril() if causal else f
    mechanism, layout = regard.build("fastmax", order=order), Layout(causal=causal)
    for mine, wanted in zip(
        *(
            [out, *torch.autograd.grad(out.square().sum(), (q, k, v))]
            for out in (mechanism(q, k, v, layout), f / f.sum(-1, keepdim=True) @ v)
        ),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted, atol=1e-9, rtol=1e-7)
    assert mechanism.weights(q, k, layout).min() >= 0


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("order", [1, 2])
def test_fastmax_takes_twice_the_time_for_twice_the_tokens(order, causal, record_property):
    """Fastmax on one thread, 4k to 8k tokens, forward and backward: at most 2.3 times the time."""
    mechanism, best = regard.build("fastmax", order=order), {}
    for _ in range(5):
        for n in (4096, 8192):
            q, k, v = (torch.randn(1, 2, n, 16, requires_grad=True) for _ in range(3))
            begun = time.process_time()
            mechanism(q, k, v, Layout(causal=causal)).square().sum().backward()
            best[n] = min(best.get(n, math.inf), time.process_time() - begun)
    record_property("time", f"{best[8192] / best[4096]:.2f} times")
    assert best[8192] <= 2.3 * best[4096]


@pytest.mark.slow
def test_a_small_language_model_of_fastmax(record_property):
    """A byte-level model of two layers, 200 steps: loss with p = 2 is above softmax's by more than the 5% asked."""
    data = torch.tensor(list("".join(inspect.getsource(module) for module in (argparse, ast, inspect)).encode()))
    _, data = data.unique(return_inverse=True)
    cut, losses = len(data) * 9 // 10, {}

    def batch(generator, first, last, size):
        starts = torch.randint(first, last - 65, (size,), generator=generator)
        return data[starts[:, None] + torch.arange(64)]

    for name in ("softmax", "fastmax"):
        model = LM(Config(int(data.max()) + 1, width=48, layers=f"{name}*2", heads=4), seed=0)
        fit(model, lambda model, generator: model.loss(batch(generator, 0, cut, 16)), Recipe(200))
        with torch.no_grad():
            held_out = batch(torch.Generator().manual_seed(1), cut, len(data), 256)
            losses[name] = model.loss(held_out).item()
    record_property("loss", ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))
    record_property("above softmax", f"{losses['fastmax'] / losses['softmax'] - 1:.1%}")
    assert losses["softmax"] < losses["fastmax"] < 3.0
