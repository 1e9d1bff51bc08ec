"""Memories that learn at test time: their chunks are the token loop, and they remember what their papers say."""

from __future__ import annotations

import time
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.recall import trained
from regard.core.layout import Layout
from regard.experiments.cell import Cell

CAUSAL = Layout(causal=True)


def made(rule: str, d: int = 5, heads: int = 2, **arguments: Any) -> Any:
    """A memory in float64, the same every time."""
    torch.manual_seed(0)
    return regard.build(rule, heads=heads, head_dim=d, value_dim=d, **arguments).double()


def draw(mechanism: Any, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """q, k, v and signals under which it remembers."""
    generator = torch.Generator().manual_seed(seed)
    heads, d = mechanism.heads, mechanism.head_dim
    q, k, v = torch.randn(3, 1, heads, n, d, generator=generator, dtype=torch.float64).unbind()
    fading, signals = {"log_decay": -0.05, "log_momentum": -1.0}, {}
    for name, spec in mechanism.signals.items():
        most = max(spec.low, fading[name]) if name in fading else min(spec.high, 2.0) / 2
        signals[name] = most * torch.rand(1, heads, n, *spec.size(d, d), generator=generator, dtype=torch.float64)
    return q, k, v, signals


@measured(chunk=(1, 5, 16))
def forms(rule: str, chunk: int) -> dict[str, float]:
    """How far chunks of matrix products are from the token loop, whose gradients are autograd's, over 83 tokens."""
    mechanism = made(rule, chunk=chunk, hidden=2)
    q, k, v, signals = draw(mechanism, 83)
    found = []
    for way in (mechanism.forward, mechanism.define):
        leaves = [x.clone().requires_grad_() for x in (q, k, v, *signals.values())]
        out = way(*leaves[:3], CAUSAL, **dict(zip(signals, leaves[3:], strict=True)))
        weighting = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
        found.append([out, *torch.autograd.grad((out * weighting).sum(), [*leaves, *mechanism.parameters()])])
    pairs = zip(*found, strict=True)
    return {"apart": max(((a - b).abs().max() / (1 + b.abs().max())).item() for a, b in pairs)}


def forms_of(rule: str) -> list[Cell]:
    return [forms.cell(rule=rule, chunk=chunk) for chunk in (1, 5, 16)]


@measured()
def linear_is_delta(rule: str) -> dict[str, float]:
    """How far a linear memory without momentum, of the squared error and nothing forgotten, is from the delta rule."""
    powers: dict[str, Any] = {"p": 2.0, "q": 2.0} if rule == "moneta" else {}
    mechanism = made(rule, chunk=1, hidden=0, step=0.5, **(powers or {"momentum": False}))
    mechanism.rule.residual = False
    with torch.no_grad():
        mechanism.initial[0].zero_()
    q, k, v, signals = draw(mechanism, 83)
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    signals["log_decay"] = torch.zeros_like(signals["log_decay"])
    step = signals["step"].view(*q.shape[:3], -1)[..., 0]
    signals["step"] = step.view(*step.shape, *[1] * (signals["step"].dim() - 3)).expand_as(signals["step"])
    with torch.no_grad():
        out = mechanism(q, k, v, CAUSAL, **signals)
    want = regard.build("deltanet")(q * q.shape[-1] ** 0.5, k, v, CAUSAL, beta=2 * step)
    return {"apart": (out - want).abs().max().item()}


def linear_of(rule: str) -> Cell:
    return linear_is_delta.cell(rule=rule)


@measured()
def state_and_step(rule: str) -> dict[str, float]:
    """Bytes of the state and the median time of a token after 16,384 tokens over those after 512."""
    mechanism, times, sizes = made(rule, 16).float(), {}, {}
    for n in (512, 16_384):
        q, k, v, signals = draw(mechanism, n)
        q, k, v = q.float(), k.float(), v.float()
        signals = {name: x.float() for name, x in signals.items()}
        with torch.no_grad():
            _, state = mechanism.extend(q, k, v, mechanism.start(1), **signals)
            one, own = [x[:, :, :1] for x in (q, k, v)], {name: x[:, :, :1] for name, x in signals.items()}
            found = []
            for _ in range(100):
                begun = time.process_time()
                mechanism.extend(*one, state, **own)
                found.append(time.process_time() - begun)
        times[n], sizes[n] = median(found), state.bytes
    return {"ratio": times[16_384] / times[512], "bytes": sizes[16_384] / sizes[512]}


def state_of(rule: str) -> Cell:
    return state_and_step.cell(rule=rule)


def stays(found: Figures) -> Finding:
    """The state does not grow, and a token costs the same within a half."""
    size, ratio = found.one("bytes"), found.one("ratio")
    figure = f"after 16,384 tokens {size:.2f} times the bytes and {ratio:.2f} times a token's time after 512"
    return Finding.of(figure, size == 1, 0.67 < ratio < 1.5)


@measured(rule=("yaad", "squared"), seed=range(5))
def outliers(rule: str, seed: int) -> dict[str, float]:
    """The error of 24 values read back, relative, when 5% of what is written is twenty times too large.

    Every pair is written 40 times in random order, by the same memory, steps and decay; ``squared`` has the same memory
    under the squared error, a threshold that no error reaches.
    """
    d, pairs = 16, 24
    mechanism = made("yaad", d, heads=1, chunk=4, step=0.05)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    keys, values = F.normalize(normal(pairs, d), dim=-1), normal(pairs, d)
    order = torch.cat([torch.randperm(pairs, generator=generator) for _ in range(40)])
    written = values[order]
    loud = torch.rand(len(order), generator=generator) < 0.05
    written = torch.where(loud[:, None], 20 * normal(len(order), d), written)
    k, v = keys[order][None, None], written[None, None]
    on = torch.ones(1, 1, len(order), d, dtype=torch.float64)
    signals = {"step": 0.01 * on, "log_decay": 0 * on, "threshold": (2.0 if rule == "yaad" else 1e9) * on}
    with torch.no_grad():
        _, state = mechanism.extend(k, k, v, mechanism.start(1, dtype=k.dtype), **signals)
        nothing = {name: x[:, :, :pairs] * (name == "threshold") for name, x in signals.items()}
        out, _ = mechanism.extend(keys[None, None], keys[None, None], values[None, None], state, **nothing)
    return {"error": ((out[0, 0] - values).square().sum() / values.square().sum()).item()}


def withstands(found: Figures) -> Finding:
    """With Huber's loss the error is smaller than with the squared one, with every seed."""
    huber, squared = (found("error", rule=rule) for rule in ("yaad", "squared"))
    figure = f"relative error with outliers {listed(huber, '.2f')}, by the squared error {listed(squared, '.2f')}"
    return Finding.of(figure, all(a < b for a, b in zip(huber, squared, strict=True)))


LIKE = {"memora": 93}
"""Channels of linear attention whose state is as large as that of a memory of 32, where that is not the weights and
their momentum but half as much again: Memora keeps what it is read by too."""


def recall_of(rule: str, steps: int = 500) -> list[Cell]:
    """A linear memory of 32 channels, and linear attention with as large a state."""
    arms = ((f"{rule}(hidden=0)*2", 32), ("linear*2", LIKE.get(rule, 62)))
    return [trained.cell(layers=layers, head_dim=d, seed=seed, steps=steps) for layers, d in arms for seed in range(2)]


def recalls_as_much(found: Figures) -> Finding:
    """At least what linear attention does, from a state within 10% of its size."""
    linear, state = found("recalled", layers="linear*2"), found("state", layers="linear*2")[0]
    layers = next(name for name in found("layers") if name != "linear*2")
    own, size = found("recalled", layers=layers), found("state", layers=layers)[0]
    figure = (
        f"recall of 8 pairs {listed(own, '.1%')} with {size:,} numbers of state, "
        f"linear attention {listed(linear, '.1%')} with {state:,}"
    )
    return Finding.of(figure, mean(own) >= mean(linear), size <= 1.1 * state)
