"""Polynomials in the place of the exponential: exact products, falling errors, cost linear in the length."""

from __future__ import annotations

import argparse
import ast
import inspect
import math
import time
from statistics import mean

import torch
from torch import Tensor, nn

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, interval
from regard.claims.small_lm import cells
from regard.core.layout import Layout
from regard.experiments.cell import Cell
from regard.networks import LM, Config
from regard.train.fit import Recipe, fit

CAUSAL = Layout(causal=True)


def standard(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


@measured()
def explicit(name: str, order: int, causal: bool) -> dict[str, float]:
    """The largest difference of output and gradients from the n × n polynomial attention, and the least weight."""
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, 2, 131, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3))
    products = q @ k.mT * 5**-0.5
    if name == "fastmax":
        products = standard(q) @ standard(k).mT / (5 if order == 1 else 1)
    f = sum((products**power / math.factorial(power) for power in range(order + 1)), torch.zeros_like(products))
    f = f.tril() if causal else f
    mechanism, layout = regard.build(name, **({} if name == "based" else {"order": order})), Layout(causal=causal)
    outs = (mechanism(q, k, v, layout), f / f.sum(-1, keepdim=True) @ v)
    found = [[out, *torch.autograd.grad(out.square().sum(), (q, k, v))] for out in outs]
    apart = max(((a - b).abs() / (1 + b.abs())).max().item() for a, b in zip(*found, strict=True))
    return {"apart": apart, "least": mechanism.weights(q, k, layout).min().item()}


def causal(name: str) -> Cell:
    """Two terms of the series, causal."""
    return explicit.cell(name=name, order=2, causal=True)


def fastmax() -> list[Cell]:
    """Orders 1 and 2, causal and bidirectional."""
    return [explicit.cell(name="fastmax", order=order, causal=causal) for order in (1, 2) for causal in (True, False)]


def equal_and_positive(found: Figures) -> Finding:
    """Equal to 1e-9 with gradients, and no weight negative."""
    apart, least = max(found("apart")), min(found("least"))
    figure = (
        f"equal to {apart:.0e} with gradients for orders 1 and 2, causal and bidirectional; least weight {least:.2g}"
    )
    return Finding.of(figure, apart < 1e-9, least >= 0)


@measured(order=(1, 2), causal=(False, True))
def doubling(order: int, causal: bool) -> dict[str, float]:
    """How many times as long forward and backward of 8k tokens take as of 4k, on one thread."""
    mechanism, best = regard.build("fastmax", order=order), {4096: math.inf, 8192: math.inf}
    for _ in range(5):
        for n in best:
            q, k, v = (torch.randn(1, 2, n, 16, requires_grad=True) for _ in range(3))
            begun = time.process_time()
            mechanism(q, k, v, Layout(causal=causal)).square().sum().backward()
            best[n] = min(best[n], time.process_time() - begun)
    return {"ratio": best[8192] / best[4096]}


@measured(name=("softmax", "fastmax"), rate=(3e-3, 1e-2), steps=[2000])
def bytes_lm(name: str, rate: float, steps: int) -> dict[str, float]:
    """Held-out loss of a byte-level model of two layers, trained at this rate."""
    codes = torch.tensor(list("".join(inspect.getsource(module) for module in (argparse, ast, inspect)).encode()))
    _, codes = codes.unique(return_inverse=True)
    cut = len(codes) * 9 // 10

    def batch(generator: torch.Generator, first: int, last: int, size: int) -> Tensor:
        starts = torch.randint(first, last - 65, (size,), generator=generator)
        return codes[starts[:, None] + torch.arange(64)]

    def loss(ready: nn.Module, generator: torch.Generator) -> Tensor:
        return model.loss(batch(generator, 0, cut, 16))

    model = LM(Config(int(codes.max()) + 1, width=48, layers=f"{name}*2", heads=4), seed=0)
    fit(model, loss, Recipe(steps, rate))
    with torch.no_grad():
        return {"loss": model.loss(batch(torch.Generator().manual_seed(1), cut, len(codes), 256)).item()}


def within_five_percent(found: Figures) -> Finding:
    """At most 5% above softmax's, each at its better rate."""
    softmax, other = (min(found("loss", name=name)) for name in ("softmax", "fastmax"))
    figure = f"byte-level model: loss {other:.3f}, softmax {softmax:.3f}, {other / softmax - 1:.1%} above it"
    return Finding.of(figure, other <= 1.05 * softmax)


@measured(order=(2, 4, 6, 8, 10, 12))
def series(order: int) -> dict[str, float]:
    """The largest error of the series for |s| ≤ 2, and the first term left out."""
    s = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    total = sum((s**n / math.factorial(n) for n in range(order + 1)), torch.zeros_like(s))
    return {"error": (total - s.exp()).abs().max().item(), "first": 2 ** (order + 1) / math.factorial(order + 1)}


def is_the_first_term(found: Figures) -> Finding:
    """Between the first term left out and 1.8 times it."""
    ratios = [row["error"] / row["first"] for row in found.rows]
    shown = ", ".join(f"{row['error']:.1e} for N = {row['order']}" for row in found.rows if row["order"] >= 10)
    return Finding.of(f"largest error at |q·k| ≤ 2: {shown}", min(ratios) >= 1, max(ratios) < 1.8)


@measured(order=(2, 4, 6))
def nearer(order: int) -> dict[str, float]:
    """The largest difference of the recurrence's output from softmax attention, for |q| = |k| = 2."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 67, 4, dtype=torch.float64) for _ in range(3))
    q, k = q / q.norm(dim=-1, keepdim=True) * 2, k / k.norm(dim=-1, keepdim=True) * 2
    softmax = regard.build("softmax")(q, k, v, CAUSAL)
    return {"apart": (regard.build("softmax_rnn", order=order)(q, k, v, CAUSAL) - softmax).abs().max().item()}


def approaches(found: Figures) -> Finding:
    """Two more terms divide the error by five at least."""
    errors = found("apart")
    shown = ", ".join(f"{error:.1e}" for error in errors)
    return Finding.of(
        f"outputs of orders 2, 4 and 6 differ from softmax attention by {shown}",
        errors[0] > 5 * errors[1] > 25 * errors[2],
    )


def terms() -> list[Cell]:
    """Small language models of softmax, one term and two, with a norm for each head."""
    return cells("softmax*2") + [c for n in (1, 2) for c in cells(f"softmax_rnn(order={n}, normaliser=none)*2")]


def losses(found: Figures) -> tuple[list[float], list[float], list[float], str]:
    plain, one, two = found("loss")[:3], found("loss")[3:6], found("loss")[6:]
    shown = f"loss {interval(one)} with one term, {interval(two)} with two, softmax {interval(plain)}"
    return plain, one, two, shown


def more_is_better(found: Figures) -> Finding:
    """Two terms lose less than one."""
    _, one, two, shown = losses(found)
    return Finding.of(shown, mean(two) < mean(one))


def two_are_near(found: Figures) -> Finding:
    """Two terms are within 1% of softmax."""
    plain, _, two, _ = losses(found)
    return Finding.of(
        f"two terms {mean(two) / mean(plain) - 1:.1%} above softmax, wanted at most 1%", mean(two) <= 1.01 * mean(plain)
    )
