"""Recurrent mechanisms as dynamical systems, and the capacity of their memories."""

import pytest
import torch

import regard
from regard.core.atlas import entries
from regard.mechanisms.linear.base import Recurrent
from regard.studies.linear_dynamics import as_system, recall_errors

CAUSAL = regard.Layout(causal=True)
RECURRENT = {
    entry.name: entry.thing.examples()[0]
    for entry in entries()
    if isinstance(entry.thing, type) and issubclass(entry.thing, Recurrent)
}
REFUSED = {
    name
    for name, example in RECURRENT.items()
    if type(example.mechanism).run is not Recurrent.run or example.mechanism.normalised
}


def draw(mechanism, n=23, heads=2, d=5):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, n, d, dtype=torch.float64) for _ in range(3))
    signals = {}
    for name, spec in mechanism.signals.items():
        noise = torch.randn(1, heads, n, *spec.size(d, d), dtype=torch.float64)
        least = -1.0 if spec.low is None else max(spec.low, -1.0)
        signals[name] = least + (min(1.0 if spec.high is None else spec.high, 1.0) - least) * noise.sigmoid()
    return q, torch.nn.functional.normalize(k, dim=-1), v, signals


@pytest.mark.parametrize("kind", sorted(set(RECURRENT) - REFUSED))
def test_systems_are_the_mechanisms(kind):
    """A layer, the dynamical system that it is, and that system's matrix agree."""
    example = RECURRENT[kind]
    mechanism = example.mechanism.double()
    q, k, v, signals = draw(mechanism, heads=example.heads, d=example.head_dim)
    system, want = as_system(mechanism, q, k, v, **signals), mechanism(q, k, v, CAUSAL, **signals)
    torch.testing.assert_close(system.run(), want, atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(system.matrix @ system.inputs, want, atol=1e-9, rtol=1e-7)


def test_linear_attention_is_a_state_space_layer():
    """With a rate of nothing Mamba-2 is linear attention; with equal decays it is the gated kind."""
    mamba, gated = regard.build("mamba2", heads=2).double(), regard.build("gla").double()
    q, k, v, signals = draw(mamba)
    step = signals["step"]
    decay = (-mamba.log_rate.exp()[None, :, None] * step)[..., None].expand_as(k).contiguous()
    want = gated(q * q.shape[-1] ** 0.5, k, v * step[..., None], CAUSAL, log_decay=decay)
    torch.testing.assert_close(mamba(q, k, v, CAUSAL, step=step), want, atol=1e-9, rtol=1e-7)
    with torch.no_grad():
        mamba.log_rate.fill_(-torch.inf)
    want = torch.tril(q @ k.mT) @ (v * step[..., None])
    torch.testing.assert_close(mamba(q, k, v, CAUSAL, step=step), want, atol=1e-9, rtol=1e-7)


def test_what_is_no_plain_recurrence_is_refused():
    assert {"linear", "rwkv6"} <= REFUSED <= RECURRENT.keys() - {"mamba", "mamba2", "kimi_delta", "rwkv7"}
    for mechanism in (regard.build("softmax"), *(RECURRENT[name].mechanism for name in REFUSED)):
        q, k, v, _ = draw(regard.build("linear"))
        with pytest.raises(TypeError, match="mechanism"):
            as_system(mechanism, q, k, v)


@pytest.mark.parametrize("dim", [32, 64, 128, 256])
def test_capacity_is_linear_in_the_dimension(dim, record_property):
    """A memory of M random pairs in d dimensions errs by (M − 1) / d: twice the dimensions hold twice the pairs."""
    ratios = [
        recall_errors(pairs, dim)["hebbian"] / ((pairs - 1) / dim) for pairs in (dim // 8, dim // 2, dim, 2 * dim)
    ]
    record_property("error over (M − 1) / d", f"{min(ratios):.3f}–{max(ratios):.3f}")
    assert 0.9 < min(ratios) <= max(ratios) < 1.1


def test_pairs_held_at_an_error_grow_linearly(record_property):
    """How many pairs a memory holds at a squared error of a quarter is linear in its dimension."""
    dims, held = torch.tensor([32.0, 64, 96, 128, 192, 256], dtype=torch.float64), []
    for dim in dims.int().tolist():
        counts = list(range(dim // 8, dim // 2, max(1, dim // 16)))
        errors = [recall_errors(pairs, dim)["hebbian"] for pairs in counts]
        upper = next(i for i, error in enumerate(errors) if error >= 0.25)
        low, high = errors[upper - 1], errors[upper]
        held.append(counts[upper - 1] + (0.25 - low) / (high - low) * (counts[upper] - counts[upper - 1]))
    fit = torch.corrcoef(torch.stack([dims, torch.tensor(held, dtype=torch.float64)]))[0, 1] ** 2
    record_property("R²", f"{fit:.4f}")
    assert fit >= 0.99


def test_error_correction_holds_more(record_property):
    """The delta rule, swept ten times, recalls d / 2 pairs to 1%, where adding up errs by a half."""
    found = recall_errors(32, 64, sweeps=10)
    record_property("corrected", f"{found['corrected']:.1e}")
    record_property("added up", f"{found['hebbian']:.2f}")
    assert found["corrected"] < 0.01 < 0.4 < found["hebbian"]
