"""Adaptive filter attention: its variance, its limit without dynamics, and the filtering of a noisy oscillator."""

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.blocks.attention import Attention
from regard.core.layout import Layout
from regard.mechanisms.scored.adaptive_filter import filtered, variance
from regard.projections.base import Grouped
from regard.projections.rotary import Rotary

CAUSAL = Layout(causal=True)


@pytest.mark.parametrize(("decay", "process", "measurement"), [(0.3, 0.7, 1.5), (0.01, 2.0, 0.1), (1e-7, 1.0, 0.5)])
def test_the_variance_solves_the_lyapunov_equation(decay, process, measurement):
    """V is the integral of dP/dt = −2μP + σ² from P(0) = η², and γ² more, to 1e-5."""
    steps, anchor = 4000, 0.4
    p, times, found = measurement, torch.linspace(0, 20, steps + 1, dtype=torch.float64), [measurement]
    h = 20 / steps

    def slope(x):
        return -2 * decay * x + process

    for _ in range(steps):
        one = slope(p)
        two = slope(p + h / 2 * one)
        three = slope(p + h / 2 * two)
        p += h / 6 * (one + 2 * two + 2 * three + slope(p + h * three))
        found.append(p)
    numbers = (torch.tensor(x, dtype=torch.float64) for x in (decay, process, measurement, anchor))
    want = torch.tensor(found, dtype=torch.float64) + anchor
    torch.testing.assert_close(variance(times, *numbers), want, atol=1e-5, rtol=1e-5)


def test_without_dynamics_unit_vectors_rank_as_dot_products(record_property):
    """With μ and σ near zero and unit q and k, weights rank as dot products: Spearman at least 0.99; with μ not."""
    torch.manual_seed(0)
    q, k = (F.normalize(torch.randn(1, 4, 64, 16, dtype=torch.float64), dim=-1) for _ in range(2))
    dots = (q @ k.mT)[0, :, 63]

    def spearman(**sizes):
        weights = regard.build("adaptive_filter", **sizes).double().weights(q, k, CAUSAL)[0, :, 63]
        ranks = torch.stack([weights, dots], 1).argsort(-1).argsort(-1).double()
        return min(torch.corrcoef(both)[0, 1].item() for both in ranks)

    still, moving = spearman(decay=1e-9, process=1e-9), spearman(decay=0.1, process=0.5)
    record_property("Spearman without and with dynamics", f"{still:.4f}, {moving:.2f}")
    assert still >= 0.99
    assert moving < 0.9


def test_turned_frames_equal_carried_keys_and_values():
    """`filtered` is the definition: keys and values carried by e^{(iω − μ)Δ}, residuals taken there."""
    torch.manual_seed(1)
    n, rates = 19, torch.tensor([0.4, 1.3], dtype=torch.float64)
    sizes = {"decay": 0.2, "process": 0.3, "measurement": 0.5, "anchor": 0.6, "robust": 1.4}
    x = torch.randn(1, 1, n, 4, dtype=torch.float64)
    z, want = torch.complex(*x[0, 0].chunk(2, -1)), []
    for i in range(n):
        apart = torch.arange(i, -1, -1).double()
        carried, shrunk = z[: i + 1] * torch.exp((1j * rates - 0.2) * apart[:, None]), torch.exp(-0.4 * apart)
        v = 0.3 * (1 - shrunk) / 0.4 + 0.5 * shrunk + 0.6
        weights = 1 / (v + (z[i] - carried).abs().square().sum(-1) / (1.4 * 2))
        found = (weights[:, None] * carried).sum(0) / weights.sum()
        want.append(torch.cat([found.real, found.imag]))
    mechanism = regard.build("adaptive_filter", heads=1, **sizes).double()
    torch.testing.assert_close(filtered(mechanism, x, rates)[0, 0], torch.stack(want), atol=1e-6, rtol=0)


DECAY, RATE, NOISE = 0.02, 0.35, 1.0


def oscillators(process, count, n, generator):
    """Damped oscillators driven by noise of σ² ``process``, and noisy measurements: both ``(count, n, 2)``."""

    def noise(*shape):
        return torch.view_as_complex(torch.randn(*shape, 2, generator=generator))

    step = torch.exp(torch.tensor(complex(-DECAY, RATE)))
    spread = (process * (1 - abs(step) ** 2) / (2 * DECAY)) ** 0.5
    states = [2 * noise(count)]
    for _ in range(n - 1):
        states.append(step * states[-1] + spread * noise(count))
    x = torch.stack(states, 1)
    return torch.view_as_real(x), torch.view_as_real(x + NOISE**0.5 * noise(count, n))


class Filter(torch.nn.Module):
    """Adaptive filter attention on the measurements themselves: five numbers and a frequency are learned."""

    def __init__(self):
        super().__init__()
        self.mechanism = regard.build("adaptive_filter", heads=1)
        self.rate = torch.nn.Parameter(torch.tensor([0.2]))

    def forward(self, z):
        return filtered(self.mechanism, z[:, None], self.rate)[:, 0]


class Plain(torch.nn.Module):
    """A layer of softmax attention of two heads between two linear maps, beside a linear map."""

    def __init__(self, rotary=None):
        super().__init__()
        self.rise, self.fall, self.past = (torch.nn.Linear(a, b) for a, b in ((2, 16), (16, 2), (2, 2)))
        self.attention = Attention(regard.build("softmax"), Grouped(16, 2, 2, 8, 8), rotary)

    def forward(self, z):
        return self.fall(self.attention(self.rise(z), CAUSAL)) + self.past(z)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0.0, 0.02, 0.1])
def test_it_filters_a_noisy_oscillator(record_property, process):
    """The learned filter's squared error is over 20% below softmax attention's; with rotary, without process noise."""
    states, seen = oscillators(process, 400, 64, torch.Generator().manual_seed(99))
    kinds = {"adaptive filter": Filter, "softmax": Plain, "rotary softmax": lambda: Plain(Rotary(8, 100.0))}
    errors = {"measurements": (seen - states).square().mean().item()}
    for name, kind in kinds.items():
        torch.manual_seed(0)
        model = kind()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
        for step in range(300):
            x, z = oscillators(process, 16, 64, torch.Generator().manual_seed(step))
            optimiser.param_groups[0]["lr"] = 0.02 * min(1, (300 - step) / 150)
            optimiser.zero_grad()
            (model(z) - x).square().mean().backward()
            optimiser.step()
        with torch.no_grad():
            errors[name] = (model(seen) - states).square().mean().item()
    figures = ", ".join(f"{name} {value:.3f}" for name, value in errors.items())
    record_property(f"mean squared error at σ² = {process}", figures)
    assert errors["adaptive filter"] < 0.8 * errors["softmax"]
    assert process or errors["adaptive filter"] < 0.8 * errors["rotary softmax"]


@pytest.mark.parametrize(("argument", "given"), [("heads", 0), ("decay", 0.0), ("process", -1.0), ("robust", 0.0)])
def test_bad_arguments_are_named(argument, given):
    with pytest.raises(ValueError, match=argument):
        regard.build("adaptive_filter", **{argument: given})


def test_other_heads_are_refused():
    q = torch.randn(1, 4, 5, 3)
    with pytest.raises(ValueError, match="q: got 4 heads, want the 2 heads"):
        regard.build("adaptive_filter", heads=2)(q, q, q, CAUSAL)
