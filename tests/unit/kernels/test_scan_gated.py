"""The general scan: token by token, in chunks, with all gradients, from any state, merged, and at any strength."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from regard.kernels.scan import Inputs, Segment, gated, scan, segment

KINDS = list(itertools.product(("none", "head", "channel"), ("plain", "delta", "removal"), (False, True)))


def draw(n: int, decay: str, kind: str, packed: bool, seed: int = 0, b: int = 2, h: int = 3, d: int = 7, e: int = 5):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shapes = {"none": None, "head": (b, h, n), "channel": (b, h, n, d)}
    log_decay = None if decay == "none" else -torch.nn.functional.softplus(normal(*shapes[decay]))
    key = torch.nn.functional.normalize(normal(b, h, n, d), dim=-1)
    beta = torch.rand(b, h, n, generator=generator, dtype=torch.float64) if kind == "delta" else None
    resets = torch.rand(b, n, generator=generator) < 0.07 if packed else None
    read = torch.nn.functional.normalize(normal(b, h, n, d), dim=-1)
    taken = (read, read * torch.rand(b, h, n, d, generator=generator)) if kind == "removal" else (None, None)
    return Inputs(normal(b, h, n, d), key, normal(b, h, n, e), log_decay, beta, *taken, resets), normal(b, h, d, e)


def step_by_step(x: Inputs, state: torch.Tensor):
    """The recurrence as it is written."""
    outs = []
    for t in range(x.q.shape[2]):
        q, k, v = x.q[:, :, t], x.k[:, :, t], x.v[:, :, t]
        if x.resets is not None:
            state = state * (~x.resets[:, t])[:, None, None, None]
        if x.log_decay is not None:
            kept = x.log_decay[:, :, t].exp()
            state = state * (kept[..., None] if kept.dim() == 3 else kept[..., None, None])
        if x.beta is not None:
            v = x.beta[:, :, t, None] * (v - torch.einsum("bhd,bhde->bhe", k, state))
        if x.erase_key is not None and x.erase_value is not None:
            recalled = torch.einsum("bhd,bhde->bhe", x.erase_key[:, :, t], state)
            state = state - x.erase_value[:, :, t, :, None] * recalled[..., None, :]
        state = state + k[..., :, None] * v[..., None, :]
        outs.append(torch.einsum("bhd,bhde->bhe", q, state))
    return torch.stack(outs, 2), state


@pytest.mark.parametrize(("decay", "kind", "packed"), KINDS)
@pytest.mark.parametrize("n", [1, 5, 64, 131])
def test_chunked_is_the_recurrence_with_all_gradients(n, decay, kind, packed):
    x, state = draw(n, decay, kind, packed)
    leaves = [tensor.requires_grad_() for tensor in x.tensors if tensor.is_floating_point()] + [state.requires_grad_()]
    found = []
    for run in (scan, step_by_step):
        out, after = run(x, state)
        loss = (out * torch.sin(torch.arange(out.numel()).view_as(out))).sum() + after.square().sum()
        found.append([out, after, *torch.autograd.grad(loss, leaves)])
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(("decay", "kind", "packed"), KINDS)
def test_windows_hand_the_state_on(decay, kind, packed):
    x, state = draw(1100, decay, kind, packed, b=1, h=1)
    for mine, wanted in zip(scan(x, state), step_by_step(x, state), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("kind", ["plain", "delta", "removal"])
@pytest.mark.parametrize("strength", [0.0, 1.0, 2.5])
def test_mild_channels_by_products_are_channel_by_channel(strength, kind, monkeypatch):
    """In single precision, to 37 nats over 16 tokens, with all gradients."""
    x, state = draw(83, "channel", kind, True)
    x = x.each(lambda tensor, _: tensor.float() if tensor.is_floating_point() else tensor)
    x, state = replace(x, log_decay=torch.full_like(x.q, -strength)), state.float()
    found = []
    for most in (gated.MILD, -1):
        monkeypatch.setattr(gated, "MILD", most)
        leaves = [tensor.clone().requires_grad_(tensor.is_floating_point()) for tensor in x.tensors]
        out, after = scan(x.like(leaves), state)
        loss = (out * torch.sin(torch.arange(out.numel()).view_as(out))).sum() + after.square().sum()
        found.append([out, after, *torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])])
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).abs().max() <= 2e-6 * (1 + theirs.abs().max())


@pytest.mark.parametrize(("decay", "kind"), [(decay, kind) for decay, kind, packed in KINDS if not packed])
def test_segments_merge_into_one_in_any_grouping(decay, kind):
    x, state = draw(97, decay, kind, False)
    parts = [segment(x.part(span)) for span in (slice(0, 31), slice(31, 32), slice(32, 97))]
    whole = segment(x)
    for merged in ((parts[0] + parts[1]) + parts[2], parts[0] + (parts[1] + parts[2])):
        torch.testing.assert_close(merged.transition, whole.transition, atol=1e-10, rtol=1e-8)
        torch.testing.assert_close(merged.state, whole.state, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(whole.after(state), scan(x, state)[1], atol=1e-10, rtol=1e-8)
    empty = Segment(torch.eye(7, dtype=torch.float64).expand(2, 3, 7, 7), torch.zeros_like(whole.state))
    torch.testing.assert_close((empty + whole).state, whole.state)


@pytest.mark.parametrize("strength", [1e-6, 0.01, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("decay", ["head", "channel"])
@pytest.mark.parametrize("kind", ["plain", "delta", "removal"])
def test_no_decay_overflows_in_single_precision(strength, decay, kind):
    x, state = draw(331, decay, kind, False)
    x = replace(x, log_decay=x.log_decay * strength)
    wanted, kept = scan(x, state)
    single = x.like([tensor.float() for tensor in x.tensors])
    out, after = scan(single, state.float())
    assert (out - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert (after - kept).abs().max() <= 1e-4 * kept.abs().max().clamp(min=1)


@pytest.mark.parametrize(("sizes", "tokens"), [((64, 64), 64), ((128, 128), 64), ((256, 512), 192), ((0, 5), 64)])
def test_states_that_are_kept_are_no_larger_than_their_keys_and_values(sizes, tokens):
    x, (d, e) = torch.zeros(4, 16, 400, 1), sizes
    spans = gated.windows(Inputs(x, x, x), torch.zeros(4, 16, d, e))
    starts = list(range(0, 384, tokens))
    assert spans == [*(slice(start, start + tokens) for start in starts), slice(384, 400)]
    assert d * e <= tokens * (d + e)


@pytest.mark.parametrize(("rows", "heads", "states"), [(1, 1, 2), (2, 3, 8), (9, 8, 65)])
def test_memory_does_not_grow_with_the_square_of_the_length(rows, heads, states):
    """Between forward and backward there are the inputs and a state every 4,096 tokens of all heads together, though
    at most one a chunk."""
    x, state = draw(4099, "head", "delta", False, b=rows, h=heads)
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        leaves = [tensor.requires_grad_() for tensor in x.tensors]
        scan(x, state)
    assert len(held) == len(leaves) + states
    assert sum(t.numel() for t in held) == sum(t.numel() for t in leaves) + states * state.numel()
