"""Adaptive filter attention: its variance, its limit without dynamics, and the filtering of a noisy oscillator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import regard
from regard.blocks.attention import Attention
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.mechanisms.scored.adaptive_filter import AdaptiveFilter, filtered, variance
from regard.projections.base import Grouped
from regard.projections.rotary import Rotary
from regard.train.fit import Recipe, fit

CAUSAL = Layout(causal=True)
DECAY, RATE, NOISE = 0.02, 0.35, 1.0


@measured(case=("0.3 0.7 1.5", "0.01 2.0 0.1", "1e-7 1.0 0.5"))
def lyapunov(case: str) -> dict[str, float]:
    """How far V is from the integral of dP/dt = −2μP + σ² from P(0) = η², and γ² more, for μ, σ² and η²."""
    decay, process, measurement = map(float, case.split())
    steps, anchor, p, found = 4000, 0.4, measurement, [measurement]
    h = 20 / steps
    for _ in range(steps):
        one = process - 2 * decay * p
        two = process - 2 * decay * (p + h / 2 * one)
        three = process - 2 * decay * (p + h / 2 * two)
        p += h / 6 * (one + 2 * two + 2 * three + process - 2 * decay * (p + h * three))
        found.append(p)
    times = torch.linspace(0, 20, steps + 1, dtype=torch.float64)
    sizes = (torch.tensor(x, dtype=torch.float64) for x in (decay, process, measurement, anchor))
    want = torch.tensor(found, dtype=torch.float64) + anchor
    return {"apart": ((variance(times, *sizes) - want).abs() / (1 + want)).max().item()}


@measured(dynamics=(False, True))
def ranks(dynamics: bool) -> dict[str, float]:
    """The least rank correlation of a head's weights with dot products, for unit q and k."""
    torch.manual_seed(0)
    q, k = (F.normalize(torch.randn(1, 4, 64, 16, dtype=torch.float64), dim=-1) for _ in range(2))
    sizes = {"decay": 0.1, "process": 0.5} if dynamics else {"decay": 1e-9, "process": 1e-9}
    weights = regard.build("adaptive_filter", **sizes).double().weights(q, k, CAUSAL)[0, :, 63]
    order = torch.stack([weights, (q @ k.mT)[0, :, 63]], 1).argsort(-1).argsort(-1).double()
    return {"spearman": min(torch.corrcoef(pair)[0, 1].item() for pair in order)}


def rank_as_dot_products(found: Figures) -> Finding:
    """At least 0.99 without dynamics, below 0.9 with."""
    still, moving = (found.one("spearman", dynamics=dynamics) for dynamics in (False, True))
    return Finding.of(f"Spearman {still:.4f} without dynamics, {moving:.2f} with", still >= 0.99, moving < 0.9)


def oscillators(process: float, count: int, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Damped oscillators driven by noise of σ² ``process``, and noisy measurements: both ``(count, n, 2)``."""

    def noise(*shape: int) -> Tensor:
        return torch.view_as_complex(torch.randn(*shape, 2, generator=generator))

    step = torch.exp(torch.tensor(complex(-DECAY, RATE)))
    spread = (process * (1 - abs(step) ** 2) / (2 * DECAY)) ** 0.5
    states = [2 * noise(count)]
    for _ in range(n - 1):
        states.append(step * states[-1] + spread * noise(count))
    x = torch.stack(states, 1)
    return torch.view_as_real(x), torch.view_as_real(x + NOISE**0.5 * noise(count, n))


class Filter(nn.Module):
    """Adaptive filter attention on the measurements themselves: five numbers and a frequency are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.mechanism = AdaptiveFilter(heads=1)
        self.rate = nn.Parameter(torch.tensor([0.2]))

    def forward(self, z: Tensor) -> Tensor:
        return filtered(self.mechanism, z[:, None], self.rate)[:, 0]


class Plain(nn.Module):
    """A layer of softmax attention of two heads between two linear maps, beside a linear map."""

    def __init__(self, rotary: Rotary | None = None) -> None:
        super().__init__()
        self.rise, self.fall, self.past = (nn.Linear(a, b) for a, b in ((2, 16), (16, 2), (2, 2)))
        self.attention = Attention(regard.build("softmax"), Grouped(Sizes(16, 2, 2, 8, 8)), rotary)

    def forward(self, z: Tensor) -> Tensor:
        return self.fall(self.attention(self.rise(z), CAUSAL)) + self.past(z)


@measured(process=(0.0, 0.02, 0.1), kind=("filter", "softmax", "rotary"), steps=[300])
def filters(process: float, kind: str, steps: int) -> dict[str, float]:
    """Mean squared error of a trained filter on unseen oscillators under process noise σ²."""

    def loss(model: nn.Module, generator: Generator) -> Tensor:
        x, z = oscillators(process, 16, 64, generator)
        return (model(z) - x).square().mean()

    torch.manual_seed(0)
    model = {"filter": Filter, "softmax": Plain, "rotary": lambda: Plain(Rotary(8, 100.0))}[kind]()
    fit(model, loss, Recipe(steps, 0.02, decay=0.0, warm_up=0.02))
    states, seen = oscillators(process, 400, 64, torch.Generator().manual_seed(99))
    with torch.no_grad():
        return {"error": (model(seen) - states).square().mean().item()}


def told(found: Figures, kind: str) -> tuple[list[float], list[float], str]:
    own, other = found("error", kind="filter"), found("error", kind=kind)
    shown = "; ".join(f"{a:.3f} against {b:.3f}" for a, b in zip(own, other, strict=True))
    return own, other, f"squared error with σ² = 0, 0.02 and 0.1: {shown} of {kind}"


def beats_softmax(found: Figures) -> Finding:
    """Over 20% below softmax attention's at every noise."""
    own, other, shown = told(found, "softmax")
    return Finding.of(shown, all(a < 0.8 * b for a, b in zip(own, other, strict=True)))


def beats_rotary_without_noise(found: Figures) -> Finding:
    """Over 20% below that with rotary positions where the process has no noise."""
    own, other, shown = told(found, "rotary")
    return Finding.of(shown, own[0] < 0.8 * other[0])
