"""The scan of few values a head: the recurrence with all gradients, by tokens and by chunks, at any strength."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.kernels.scan import gated, narrow, scan
from regard.laws.mechanism import LAWS, example, subject
from regard.mechanisms.linear.mamba import SelectiveScan
from unit.kernels.test_scan_gated import draw, step_by_step

WAYS = pytest.mark.parametrize("large", [1, 1 << 60])  # token by token, and a token of every chunk
UNCLAIMED = ("mask", "bias", "symmetry", "cost")


def with_gradients(run, x, state):
    leaves = [tensor.clone().requires_grad_(tensor.is_floating_point()) for tensor in [*x.tensors, state]]
    out, after = run(x.like(leaves[:-1]), leaves[-1])
    loss = (out * torch.sin(torch.arange(out.numel()).view_as(out))).sum() + after.square().sum()
    return [out, after, *torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])]


@WAYS
@pytest.mark.parametrize("n", [2, 64, 131, 1100])
@pytest.mark.parametrize(("e", "packed"), [(1, False), (1, True), (4, True)])
def test_it_is_the_recurrence_with_all_gradients(n, e, packed, large, monkeypatch):
    monkeypatch.setattr(narrow, "LARGE", large)
    x, state = draw(n, "channel", "plain", packed, e=e, b=2 if n < 1000 else 1)
    for mine, wanted in zip(*(with_gradients(run, x, state) for run in (scan, step_by_step)), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-9, rtol=1e-8)


@WAYS
def test_only_what_is_asked_for_has_a_gradient(large, monkeypatch):
    """The last state alone, then the outputs alone."""
    monkeypatch.setattr(narrow, "LARGE", large)
    x, state = draw(70, "channel", "plain", True, e=2)
    for place in (0, 1):
        found = []
        for run in (scan, step_by_step):
            key = x.k.clone().requires_grad_()
            found.append(torch.autograd.grad(run(replace(x, k=key), state)[place].sin().sum(), key)[0])
        torch.testing.assert_close(*found, atol=1e-10, rtol=1e-8)


@settings(max_examples=25)
@given(st.integers(2, 150), st.integers(1, 4), st.sampled_from([1, 1 << 60]), st.floats(-6, 4), st.integers(0, 9))
def test_decays_of_any_strength_in_single_precision(n, e, large, power, seed):
    """Shut gates of −∞ among them, whose gradients stay finite."""
    x, state = draw(n, "channel", "plain", seed % 2 == 0, seed, e=e)
    decay = x.log_decay * 10**power
    shut = torch.rand(decay.shape, generator=torch.Generator().manual_seed(seed)) < 0.05
    x = replace(x, log_decay=decay.masked_fill(shut, -torch.inf))
    wanted, kept = step_by_step(x, state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(narrow, "LARGE", large)
        found = with_gradients(scan, x.each(lambda t, _: t.float() if t.is_floating_point() else t), state.float())
    for mine, exact in zip(found, (wanted, kept), strict=False):
        assert (mine - exact).abs().max() <= 2e-5 * (1 + exact.abs().max())
    assert all(x.isfinite().all() for x in found)


@WAYS
@pytest.mark.parametrize("law", [name for name in LAWS if name not in UNCLAIMED])
def test_mamba_of_one_value_keeps_the_laws(law, large, monkeypatch):
    """As its paper has it; examples have more values, whose FLOPs PyTorch counts, as it does not count states."""
    monkeypatch.setattr(narrow, "LARGE", large)
    assert LAWS[law](subject(example(SelectiveScan(4, 5), 4, 2, value_dim=1)))


def test_nothing_is_kept_behind_the_backward_pass(monkeypatch):
    """The last of the states that it needs is one of its outputs, which must not hold itself."""
    monkeypatch.setattr(narrow, "LARGE", 1)
    x, state = draw(20, "channel", "plain", False, e=1)
    with_gradients(scan, x, state)
    counts = []
    for _ in range(2):
        with_gradients(scan, x, state)
        gc.collect()
        counts.append(sum(isinstance(each, torch.Tensor) for each in gc.get_objects()))
    assert counts[0] == counts[1]


def test_wider_values_take_pairs(monkeypatch):
    monkeypatch.setattr(gated, "narrow_scan", None)
    x, state = draw(9, "channel", "plain", False, e=narrow.NARROW + 1)
    scan(x, state)
    with pytest.raises(TypeError):
        scan(replace(x, v=x.v[..., :1]), state[..., :1])
