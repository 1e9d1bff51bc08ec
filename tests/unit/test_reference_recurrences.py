"""Recurrences as published code computes them, written down by tests/reference/recurrences.py."""

import json
from pathlib import Path

import pytest
import torch

from regard import Layout, build

VALUES = json.loads((Path(__file__).parents[1] / "reference" / "recurrences.json").read_text())
CAUSAL = Layout(causal=True)
SIGNALS = {
    "gla": {"log_decay": "channels"},
    "rwkv6": {"log_decay": "channels"},
    "deltanet": {"beta": "beta"},
    "gated_deltanet": {"log_decay": "heads", "beta": "beta"},
    "kimi_delta": {"log_decay": "channels", "beta": "beta"},
    "rwkv7": {"log_decay": "channels", "removed": "k", "rate": "rate"},
}


def tensors(name):
    return {field: torch.tensor(value, dtype=torch.float64) for field, value in VALUES[name].items()}


@pytest.mark.parametrize("name", VALUES["outputs"])
def test_scan_definition_and_steps_are_what_published_code_computes(name):
    """Scales, bonuses, which decay comes first, what is removed: as in the plain functions of fla and Transformers."""
    given, want = tensors("inputs"), tensors("outputs")[name]
    q, k, v = (given[field] for field in "qkv")
    signals = {signal: given[field] for signal, field in SIGNALS.get(name, {}).items()}
    mechanism = (build(name, heads=3, head_dim=5) if name.startswith("rwkv") else build(name)).double()
    for own in mechanism.parameters():
        own.data.copy_(given["parameter"])
    state, steps = mechanism.start(1, dtype=torch.float64), []
    for t in range(q.shape[2]):
        part = {signal: x[:, :, t : t + 1] for signal, x in signals.items()}
        out, state = mechanism.extend(*(x[:, :, t : t + 1] for x in (q, k, v)), state, **part)
        steps.append(out)
    dense = mechanism.weights(q, k, CAUSAL, **signals) @ v
    for got in (mechanism(q, k, v, CAUSAL, **signals), dense, torch.cat(steps, 2)):
        torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("least", [-0.6, -20.0, -60.0])
def test_a_removal_is_exact_whatever_the_decay(least):
    """RWKV-7 in float32 is the recurrence in float64, where next to nothing is left of what it takes away."""
    torch.manual_seed(0)
    q, k, removed = torch.randn(3, 1, 2, 70, 7)
    v, decay, rate = torch.randn(1, 2, 70, 5), least * torch.rand(1, 2, 70, 7), torch.rand(1, 2, 70, 7)
    mechanism = build("rwkv7", heads=2, head_dim=7)
    got = mechanism(q, k, v, CAUSAL, log_decay=decay, removed=removed, rate=rate)
    q, k, v, decay, rate, key = (
        x.double() for x in (q, k, v, decay, rate, torch.nn.functional.normalize(removed, dim=-1))
    )
    state, want = torch.zeros(1, 2, 7, 5, dtype=torch.float64), []
    for t in range(70):
        taken = key[:, :, t, None] @ state
        state = decay[:, :, t].exp()[..., None] * state - (rate * key)[:, :, t, :, None] * taken
        state = state + (k * rate)[:, :, t, :, None] * v[:, :, t, None]
        want.append(q[:, :, t, None] @ state)
    torch.testing.assert_close(got.double(), torch.cat(want, 2), rtol=1e-5, atol=2e-5)
