"""Decays of any strength, shut and open gates too: the scan against the recurrence as it is written, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.kernels.scan import Inputs, decayed, scan, segment

STRENGTHS = (0.0, -1e-7, -1e-3, -0.4, -0.5, -1.5, -90.0, -1e4, -1e9, -1e38, -torch.inf)
KINDS = ("plain", "delta", "removal")
MANY = settings(max_examples=25, deadline=None)


def drawn(n: int, kind: str, channels: bool, packed: bool, seed: int, d: int = 5, e: int = 3):
    """Gates of every strength in any order, weak ones most of all."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    b, h = 1, 2
    shape = (b, h, n, d) if channels else (b, h, n)
    strong = torch.tensor(STRENGTHS, dtype=torch.float32)[torch.randint(len(STRENGTHS), shape, generator=generator)]
    rare = torch.rand(shape, generator=generator) < 0.1
    log_decay = torch.where(rare, strong, -0.1 * torch.rand(shape, generator=generator)).double()
    key, other = (torch.nn.functional.normalize(normal(b, h, n, d), dim=-1) for _ in range(2))
    beta = torch.rand(b, h, n, generator=generator, dtype=torch.float64) if kind == "delta" else None
    taken = (other, other * torch.rand(b, h, n, d, generator=generator)) if kind == "removal" else (None, None)
    resets = torch.rand(b, n, generator=generator) < 0.05 if packed else None
    return Inputs(normal(b, h, n, d), key, normal(b, h, n, e), log_decay, beta, *taken, resets), normal(b, h, d, e)


def plainly(x: Inputs, state: torch.Tensor):
    """Token by token; `Inputs` says what the names mean."""
    outs = []
    for t in range(x.q.shape[2]):
        at = x.part(slice(t, t + 1))
        if at.resets is not None:
            state = torch.where(at.resets[:, :, None, None], 0.0, state)
        assert at.log_decay is not None
        state = state * (at.log_decay[:, :, 0, :, None] if at.log_decay.dim() == 4 else at.log_decay[..., None]).exp()
        written = at.v
        if at.beta is not None:
            written = at.beta[..., None] * (at.v - at.k @ state)
        if at.erase_key is not None and at.erase_value is not None:
            state = state - at.erase_value.mT @ (at.erase_key @ state)
        state = state + at.k.mT @ written
        outs.append(at.q @ state)
    return torch.cat(outs, 2), state


def single(x: Inputs) -> Inputs:
    return x.like([tensor.float() if tensor.is_floating_point() else tensor for tensor in x.tensors])


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> bool:
    return bool((got - want).abs().max() <= tolerance * want.abs().max().clamp(min=1))


calls = {
    "n": st.sampled_from([1, 2, 15, 16, 17, 47, 63, 64, 65, 129]),
    "kind": st.sampled_from(KINDS),
    "channels": st.booleans(),
    "packed": st.booleans(),
    "seed": st.integers(0, 2**20),
}


@MANY
@given(**calls)
def test_any_strengths_in_any_order(n, kind, channels, packed, seed):
    x, state = drawn(n, kind, channels, packed, seed)
    wanted = plainly(x, state)
    for got, want in zip(scan(x, state), wanted, strict=True):
        assert close(got, want, 1e-11)
    for got, want in zip(scan(single(x), state.float()), wanted, strict=True):
        assert close(got, want, 3e-5)


@MANY
@given(**calls)
def test_gradients_of_all_that_a_scan_reads(n, kind, channels, packed, seed):
    """Those of gates so far shut that nothing passes are zero, in float32 too."""
    x, state = drawn(n, kind, channels, packed, seed)
    weighting = torch.sin(torch.arange(x.v.numel())).view_as(x.v)
    found = []
    for run, given_, start in ((plainly, x, state), (scan, x, state), (scan, single(x), state.float())):
        leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in (*given_.tensors, start)]
        out, after = run(given_.like(leaves[:-1]), leaves[-1])
        learned = [leaf for leaf in leaves if leaf.requires_grad]
        found.append(torch.autograd.grad((out * weighting).sum() + after.sin().sum(), learned))
    for want, double, half in zip(*found, strict=True):
        assert close(double, want, 1e-10)
        assert close(half, want, 1e-4)


@pytest.mark.parametrize(("kind", "channels"), list(itertools.product(KINDS, (False, True))))
def test_a_shut_gate_is_a_reset_of_a_packed_document(kind, channels):
    x, state = drawn(131, kind, channels, True, seed=4)
    assert x.resets is not None
    assert x.log_decay is not None
    shut = x.resets[:, None, :, None] if channels else x.resets[:, None]
    weak = x.log_decay.clamp(min=-0.3)
    by_gate = Inputs(x.q, x.k, x.v, weak.masked_fill(shut, -torch.inf), x.beta, x.erase_key, x.erase_value)
    by_reset = Inputs(x.q, x.k, x.v, weak, x.beta, x.erase_key, x.erase_value, x.resets)
    for got, want in zip(scan(by_gate, state), scan(by_reset, state), strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("kind", "channels"), list(itertools.product(KINDS, (False, True))))
def test_gates_that_never_close_are_no_gates(kind, channels):
    x, state = drawn(131, kind, channels, False, seed=5)
    assert x.log_decay is not None
    opened = Inputs(x.q, x.k, x.v, torch.zeros_like(x.log_decay), x.beta, x.erase_key, x.erase_value)
    without = Inputs(x.q, x.k, x.v, None, x.beta, x.erase_key, x.erase_value)
    for got, want in zip(scan(opened, state), scan(without, state), strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-10)


@MANY
@given(channels=st.booleans(), kind=st.sampled_from(KINDS), cut=st.integers(1, 96), seed=st.integers(0, 2**20))
def test_a_state_goes_on_after_any_token_and_segments_merge(channels, kind, cut, seed):
    """Branched: two continuations from one state, which neither of them changes."""
    x, state = drawn(97, kind, channels, False, seed)
    whole, after = scan(x, state)
    first, middle = scan(x.part(slice(0, cut)), state)
    kept = middle.clone()
    scan(x.part(slice(0, 3)), middle)
    second, last = scan(x.part(slice(cut, 97)), middle)
    assert torch.equal(middle, kept)
    merged = segment(x.part(slice(0, cut))) + segment(x.part(slice(cut, 97)))
    assert close(torch.cat([first, second], 2), whole, 1e-11)
    assert close(last, after, 1e-11)
    assert close(merged.after(state), after, 1e-11)


@MANY
@given(n=st.integers(1, 140), slope=st.sampled_from(STRENGTHS), seed=st.integers(0, 2**20))
def test_constant_decays_of_any_strength(n, slope, seed):
    x, state = drawn(n, "plain", False, False, seed)
    slopes = torch.tensor([slope, -0.1], dtype=torch.float64)
    found = []
    for run in (decayed, lambda q, k, v, decay, s: plainly(Inputs(q, k, v, decay[None, :, None].expand(1, 2, n)), s)):
        q, k, v, start = leaves = [t.detach().clone().requires_grad_() for t in (x.q, x.k, x.v, state)]
        out, after = run(q, k, v, slopes, start)
        found.append([out, after, *torch.autograd.grad(out.sin().sum() + after.cos().sum(), leaves)])
    for got, want in zip(*found, strict=True):
        assert close(got, want, 1e-10)
