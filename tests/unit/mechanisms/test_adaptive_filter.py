"""Adaptive filter attention: its variance, its limit without dynamics, and the filtering of a noisy oscillator."""

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.core.layout import Layout
from regard.mechanisms.scored.adaptive_filter import filtered, variance

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


def test_without_dynamics_unit_vectors_rank_as_dot_products():
    """With μ and σ near zero and unit q and k, weights rank as dot products: Spearman at least 0.99; with μ not."""
    torch.manual_seed(0)
    q, k = (F.normalize(torch.randn(1, 4, 64, 16, dtype=torch.float64), dim=-1) for _ in range(2))
    dots = (q @ k.mT)[0, :, 63]

    def spearman(**sizes):
        weights = regard.build("adaptive_filter", **sizes).double().weights(q, k, CAUSAL)[0, :, 63]
        ranks = torch.stack([weights, dots], 1).argsort(-1).argsort(-1).double()
        return min(torch.corrcoef(both)[0, 1].item() for both in ranks)

    still, moving = spearman(decay=1e-9, process=1e-9), spearman(decay=0.1, process=0.5)
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


@pytest.mark.parametrize(("argument", "given"), [("heads", 0), ("decay", 0.0), ("process", -1.0), ("robust", 0.0)])
def test_bad_arguments_are_named(argument, given):
    with pytest.raises(ValueError, match=argument):
        regard.build("adaptive_filter", **{argument: given})


def test_other_heads_are_refused():
    q = torch.randn(1, 4, 5, 3)
    with pytest.raises(ValueError, match="q: got 4 heads, want the 2 heads"):
        regard.build("adaptive_filter", heads=2)(q, q, q, CAUSAL)
