"""The general scan: decays that depend on the data, for each head or channel, with and without the delta rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from regard.core.mechanism import at_hand
from regard.kernels import device as gpu
from regard.kernels.scan import fla
from regard.kernels.scan.decays import Sums
from regard.kernels.scan.narrow import NARROW, narrow_scan

CHUNK = 64  # tokens whose scores are formed; larger costs FLOPs, smaller steps
INNER = 16  # of a chunk, where channels decay apart
MILD = 40  # in nats over so many tokens, at most: e^40 times e^8 times a key is far from the largest number
Kind = Literal["plain", "delta", "removal"]
WIDEST = 256  # rows of a state that a GPU's program carries
WINDOW = 1024  # tokens of each head in flight, and between the states that the backward pass starts from
FLIGHT = 4096  # tokens of all heads together that are, on a CPU, whose cache holds what is made of them


@dataclass(frozen=True)
class Inputs:
    """What a scan reads of each token, without its queries' past.

    Args:
        q, k: ``(b, h, n, d)``. v: ``(b, h, n, e)``.
        log_decay: ``(b, h, n)`` for each head or ``(b, h, n, d)`` for each channel, −inf to 0; None for none.
        beta: ``(b, h, n)``, how much of what the key recalls is replaced; None for no delta rule.
        erase_key, erase_value: ``(b, h, n, d)``, p and b of the generalised delta rule: what p recalls is taken away
            along b; None for none. Not together with beta.
        resets: ``(b, n)`` bool, tokens before which everything is forgotten: the first ones of packed documents.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None = None
    beta: Tensor | None = None
    erase_key: Tensor | None = None
    erase_value: Tensor | None = None
    resets: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """Those that are given, in order."""
        return [x for x in (getattr(self, f.name) for f in fields(self)) if x is not None]

    @property
    def kind(self) -> Kind:
        """What is taken away before a token is written."""
        return "delta" if self.beta is not None else "plain" if self.erase_key is None else "removal"

    def like(self, tensors: list[Tensor]) -> Inputs:
        """The same with other tensors in the place of `tensors`."""
        given, left = [f.name for f in fields(self) if getattr(self, f.name) is not None], list(tensors)
        return replace(self, **dict(zip(given, left, strict=True)))

    def each(self, change: Callable[[Tensor, int], Tensor]) -> Inputs:
        """Every tensor changed by ``change(tensor, axis of its tokens)``."""

        def given(x: Tensor | None, axis: int) -> Tensor | None:
            return None if x is None else change(x, axis)

        q, k, v = (change(x, 2) for x in (self.q, self.k, self.v))
        others = (given(x, 2) for x in (self.log_decay, self.beta, self.erase_key, self.erase_value))
        return Inputs(q, k, v, *others, resets=given(self.resets, 1))

    def part(self, span: slice) -> Inputs:
        """Some consecutive tokens."""
        return self.each(lambda x, axis: x.narrow(axis, span.start, span.stop - span.start))

    def fold(self, size: int) -> Inputs:
        """Tokens as ``(chunks, size)``."""
        return self.each(lambda x, axis: x.unflatten(axis, (-1, size)))


def scan(inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """Causal linear attention under decay and delta rule, from a state to a state.

        S_t = (I − b_t p_tᵀ) G_t S_{t−1} + β_t k_t v_tᵀ,   o_t = S_tᵀ q_t,   G_t = diag(exp(log_decay_t))

    With ``beta``, the delta rule, p_t = k_t and b_t = β_t k_t; else β_t is 1, p_t ``erase_key`` and b_t
    ``erase_value``, or the first factor is the identity. A reset makes S_{t−1} zero. Chunks of C tokens are
    matrix products. Decays of any strength are safe, −inf and 0 included, whichever come before which: `decays.Sums`.
    The backward pass keeps a state at the start of each of the `windows` and computes the rest again. On CUDA, other
    kernels may do all of it: `gpu.fla`.

    Shapes: as in `Inputs`; ``state (b, h, d, e)`` -> ``(b, h, n, e)``, ``(b, h, d, e)``.
    Cost: `gated_flops`; memory O(n (d + e)).

    Papers: chunks: Hua et al., arXiv 2202.10447; the delta rule as triangular systems: Yang et al., 2406.06484; with
    decay: Yang et al., 2412.06464; channels: Yang et al., 2312.06635.
    """
    if inputs.v.numel() and inputs.erase_key is None and fla.usable(state):
        return fla.scan(inputs, state)
    out, state = cast(Any, Scan.apply)(inputs, state, *inputs.tensors)
    return out, state


class Scan(torch.autograd.Function):
    """The scan window by window; each one's backward pass is autograd over that window alone."""

    @staticmethod
    def forward(ctx, inputs, state, *tensors):
        spans, states, outs = windows(inputs, state), [], []
        for span in spans:
            states.append(state)
            out, state = window(inputs.part(span), state)
            outs.append(out)
        ctx.save_for_backward(*tensors, *states)
        ctx.kinds, ctx.count, ctx.spans = inputs, len(tensors), spans
        ctx.set_materialize_grads(False)
        return torch.cat(outs, dim=2) if outs else inputs.v.clone(), state.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_state):
        saved = ctx.saved_tensors
        inputs, states = ctx.kinds.like(list(saved[: ctx.count])), saved[ctx.count :]
        needed = ctx.needs_input_grad[2:]
        sums = [torch.zeros_like(x) if need else None for x, need in zip(inputs.tensors, needed, strict=True)]
        grad = torch.zeros_like(inputs.v) if grad is None else grad
        carried = grad_state
        for span, state in reversed(list(zip(ctx.spans, states, strict=True))):
            with torch.enable_grad():
                part = inputs.part(span)
                leaves = [x.detach().requires_grad_(need) for x, need in zip(part.tensors, needed, strict=True)]
                begun = state.detach().requires_grad_()
                out, after = window(part.like(leaves), begun)
                learned = [x for x in leaves if x.requires_grad]
                ends, upstream = [out], [grad[:, :, span]]
                if carried is not None:
                    ends, upstream = [*ends, after], [*upstream, carried]
                found = torch.autograd.grad(ends, [*learned, begun], upstream, allow_unused=True)
            *parts, carried = found
            for total, part in zip([s for s in sums if s is not None], parts, strict=True):
                if part is not None:
                    total[:, :, span] = part
        return None, carried, *sums


def in_flight(q: Tensor, block: int) -> int:
    """Tokens of each head of ``q (b, h, n, d)`` that are taken at once, whole blocks, a block at least."""
    each = FLIGHT // max(len(q) * q.shape[1], 1) if q.device.type == "cpu" else WINDOW
    return max(each // block, 1) * block


def windows(x: Inputs, state: Tensor) -> list[slice]:
    """Whole chunks, so many tokens at a time that a state is no larger than their keys and values, then what is left
    over as one short chunk."""
    n, (d, e) = x.q.shape[2], state.shape[2:]
    least, whole = -(-d * e // (max(d + e, 1) * CHUNK)) * CHUNK, n - n % CHUNK
    size = max(in_flight(x.q, CHUNK), least) if narrow(x, state) is None else WINDOW
    spans = [slice(start, min(start + size, whole)) for start in range(0, whole, size)]
    return [*spans, slice(whole, n)] if n > whole else spans


def window(inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """The chunks of one window: what lies inside chunks at once, the state from chunk to chunk."""
    n = inputs.q.shape[2]
    if n == 1:
        return step(inputs, state)
    decays = narrow(inputs, state)
    if decays is not None:
        return narrow_scan(inputs.q, inputs.k, inputs.v, decays, inputs.resets, state, min(n, CHUNK))
    x = inputs.fold(min(n, CHUNK))
    decay = None if x.log_decay is None else Sums.of(spread(x.log_decay), 3)  # from the chunk's start
    since = None if x.resets is None else x.resets.cumsum(2)[:, None]
    shared = between(x.q, decay, since)
    within = pairs(x.q, x.k, decay, since, 0) if shared is None else x.q @ x.k.mT * shared
    reading = x.q if decay is None else x.q * decay.total.exp()
    writing = x.k if decay is None else x.k * (decay[..., -1:, :] - decay).exp()
    kept = None if decay is None else decay[..., -1, :].total[..., None].exp()
    if since is not None:
        reading = reading * (since == 0)[..., None]
        writing = writing * (since == since[..., -1:])[..., None]
        fresh = (since[..., -1] == 0)[..., None, None].to(state.dtype)
        kept = fresh if kept is None else kept * fresh
    chunks = Chunks(within, reading, writing, x.v, None, kept)
    if x.erase_key is not None and x.erase_value is not None:
        chunks = generalised_delta(x, x.erase_key, x.erase_value, decay, since, chunks)
    elif x.beta is not None:
        chunks = delta(x, x.beta[..., None], decay, since, chunks, shared)
    outs, state = chunk_recurrence(chunks, state)
    return outs.flatten(2, 3), state


def narrow(x: Inputs, state: Tensor) -> Tensor | None:
    """The decays of heads that go by the states of their tokens, None of others."""
    decays, (d, e) = x.log_decay, state.shape[2:]
    return decays if decays is not None and is_narrow(d, e, decays.dim() == 4, x.kind) else None


def is_narrow(d: int, e: int, channels: bool, kind: Kind) -> bool:
    """Whether heads have few values for their channels, which decay apart, and nothing is removed."""
    return channels and kind == "plain" and e <= NARROW and d > 1


def step(x: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token, by the recurrence as `scan` has it."""
    if x.resets is not None:
        state = state.masked_fill(x.resets[:, :, None, None], 0)
    if x.log_decay is not None:
        state = state * (x.log_decay[..., None] if x.log_decay.dim() == 3 else x.log_decay.mT).exp()
    written = x.v if x.beta is None else x.beta[..., None] * (x.v - x.k @ state)
    if x.erase_key is not None and x.erase_value is not None:
        state = state - x.erase_value.mT @ (x.erase_key @ state)
    state = state + x.k.mT @ written
    return x.q @ state, state


@dataclass(frozen=True)
class Chunks:
    """What the state meets on its way; what is None is left out.

    Args:
        within: ``(b, h, chunks, C, C)``. reading, writing, keys: ``(…, C, d)``. values, base: ``(…, C, e)``.
        kept: ``(…, d or 1, 1)``. added: ``(…, d, e)``, together with base.
    """

    within: Tensor
    reading: Tensor
    writing: Tensor
    values: Tensor
    keys: Tensor | None
    kept: Tensor | None
    base: Tensor | None = None
    added: Tensor | None = None


def chunk_recurrence(x: Chunks, state: Tensor) -> tuple[Tensor, Tensor]:
    """The state from chunk to chunk.

        new_c = values_c + keys_c S_c,   out_c = base_c + within_c new_c + reading_c S_c
        S_{c+1} = kept_c S_c + added_c + writing_cᵀ new_c

    Shapes: ``state (b, h, d, e)`` -> ``(b, h, chunks, C, e)`` and the last state.
    """
    if gpu.usable(state) and state.shape[2] <= WIDEST:
        from regard.kernels.scan.triton import chunk_recurrence as in_triton

        return in_triton(x, state)
    before = []
    if x.keys is None:  # what is written does not depend on the state, so that all but its sum is done at once
        written = x.writing.mT @ x.values
        for c in range(x.values.shape[2]):
            before.append(state)
            state = (state if x.kept is None else state * x.kept[:, :, c]) + written[:, :, c]
        return x.within @ x.values + x.reading @ torch.stack(before, dim=2), state
    news, chunks = [], range(x.values.shape[2])
    now, values, keys, writing = (t.flatten(0, 1) for t in (state, x.values, x.keys, x.writing))
    whole = (None if t is None else t.expand(*state.shape[:2], *t.shape[2:]) for t in (x.kept, x.added))
    kept, added = (None if t is None else t.flatten(0, 1) for t in whole)
    for c in chunks:
        before.append(now)
        news.append(torch.baddbmm(values[:, c], keys[:, c], now))
        now = now if kept is None else now * kept[:, c]
        now = torch.baddbmm(now, writing[:, c].mT, news[-1])
        now = now if added is None else now + added[:, c]
    new, states = (torch.stack(t, 1).unflatten(0, state.shape[:2]) for t in (news, before))
    outs = x.within @ new + x.reading @ states
    return outs if x.base is None else x.base + outs, now.unflatten(0, state.shape[:2])


def delta(
    x: Inputs, beta: Tensor, decay: Sums | None, since: Tensor | None, plain: Chunks, shared: Tensor | None
) -> Chunks:
    """The chunks under the delta rule: a unit triangular system gives what each token really writes.

    (I + B) U = β (V − K̃ S),   B_ij = β_i k_i·k_j decay_ij for j < i,   K̃ = k decayed from the chunk's start
    """
    erase_key = x.k if decay is None else x.k * decay.total.exp()
    if since is not None:
        erase_key = erase_key * (since == 0)[..., None]
    scores = pairs(x.k, x.k, decay, since, -1) if shared is None else x.k @ x.k.mT * shared
    system = beta * scores  # of which what is on the diagonal is not read
    right = torch.cat([beta * x.v, -beta * erase_key], dim=-1)
    solved = substituted(system, right)
    values, keys = solved.split([x.v.shape[-1], x.k.shape[-1]], dim=-1)
    return replace(plain, values=values, keys=keys)


def generalised_delta(
    x: Inputs, erase_key: Tensor, erase_value: Tensor, decay: Sums | None, since: Tensor | None, plain: Chunks
) -> Chunks:
    """The chunks under a removal apart from the writing: a unit triangular system gives what each token takes away.

    (I + B) U = P̃ S + C V,   B_ij = p_i·b_j decay_ij,  C_ij = p_i·k_j decay_ij for j < i,   P̃ = p decayed from the start
    """
    recalling, ending = erase_key, erase_value
    if decay is not None:
        recalling = erase_key * decay.total.exp()
        ending = erase_value * (decay[..., -1:, :] - decay).exp()
    if since is not None:
        recalling = recalling * (since == 0)[..., None]
        ending = ending * (since == since[..., -1:])[..., None]
    system = pairs(erase_key, erase_value, decay, since, -1)
    right = torch.cat([pairs(erase_key, x.k, decay, since, -1) @ x.v, recalling], dim=-1)
    solved = substituted(system, right)
    taken, recalled = solved.split([x.v.shape[-1], x.k.shape[-1]], dim=-1)
    base, added = plain.within @ x.v, plain.writing.mT @ x.v
    back = -pairs(x.q, erase_value, decay, since, 0)
    return Chunks(back, plain.reading, -ending, taken, recalled, plain.kept, base, added)


def substituted(system: Tensor, right: Tensor) -> Tensor:
    """X of ``(I + B) X = right``, B what stands below the diagonal of ``system (…, C, C)``; the rest is not read.

    As ``Xᵀ (I + B)ᵀ = rightᵀ``, whose matrices stand in memory as LAPACK has them: nothing is copied.
    """
    return torch.linalg.solve_triangular(system.mT, right.mT, upper=True, left=False, unitriangular=True).mT


def spread(decay: Tensor) -> Tensor:
    """Decays of heads or channels ``(b, h, chunks, tokens, 1 or d)``."""
    return decay if decay.dim() == 5 else decay[..., None]


def pairs(q: Tensor, k: Tensor, decay: Sums | None, since: Tensor | None, diagonal: int) -> Tensor:
    """``q_i · diag(exp(D_i − D_j)) k_j`` for j ≤ i (or j < i for ``diagonal`` −1) of one document, else 0."""
    size = q.shape[3]
    hidden = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(diagonal + 1)
    apart = None if since is None else since[..., :, None] != since[..., None, :]
    shared = between(q, decay, since, diagonal)
    if shared is not None:
        return q @ k.mT * shared
    found = q @ k.mT if decay is None else channel_pairs(q, k, decay)
    return found.masked_fill(hidden if apart is None else hidden | apart, 0)


def between(q: Tensor, decay: Sums | None, since: Tensor | None, diagonal: int = 0) -> Tensor | None:
    """What heads' decays leave of token j at token i, ``(…, C, C)``, 0 where `pairs` are; None for other decays."""
    if decay is None or decay.whole.shape[-1] > 1:
        return None
    heads = decay[..., 0]
    found = (heads[..., :, None] - heads[..., None, :]).tril_().exp_().tril(diagonal)
    return found if since is None else found.masked_fill(since[..., :, None] != since[..., None, :], 0)


def channel_pairs(q: Tensor, k: Tensor, decay: Sums) -> Tensor:
    """`pairs` of channels that decay apart, by `INNER` queries; what lies above the diagonal is unspecified.

    Where all decays are `MILD`, those between a block's start and its keys have an inverse, and pairs inside of it are
    a product of matrices; else they are formed channel by channel.
    """
    size, rows = q.shape[3], []
    begins = torch.arange(size, device=q.device) // INNER * INNER
    rest = (decay.rest - decay.rest[..., begins, :]).exp()  # between e^-8 and e^8, so that its inverse is safe
    reading, written = q * rest, k / rest
    whole = decay.whole - decay.whole[..., begins, :]
    distant = reading * whole.exp()
    mild = at_hand(q) and (not whole.numel() or -whole.detach().amin().item() <= MILD)
    nearby = written * (-whole).exp() if mild else written
    for start in range(0, size, INNER):
        own, before = slice(start, start + INNER), slice(0, start)
        if mild:
            near = distant[..., own, :] @ nearby[..., own, :].mT
        else:
            apart = whole[..., own, :]
            fine = (apart[..., :, None, :] - apart[..., None, :, :]).clamp_(max=0).exp_()
            near = ((fine * written[..., None, own, :]) @ reading[..., own, :, None])[..., 0]
        blocks = [near, near.new_zeros(*near.shape[:-1], max(size - start - INNER, 0))]
        if start:
            earlier = k[..., before, :] * (decay[..., start : start + 1, :] - decay[..., before, :]).exp()
            blocks = [distant[..., own, :] @ earlier.mT, *blocks]
        rows.append(torch.cat(blocks, dim=-1))
    return torch.cat(rows, dim=-2)


def gated_flops(n: int, d: int, e: int, channels: bool = False, kind: Kind = "plain") -> int:
    """FLOPs of one head's matrix products: scores and their values inside chunks, reading and writing the state.

    Those of `NARROW` values are what the states of its tokens take, which are no matrix products.

    The triangular systems of the delta rule and of a removal, which are no matrix products, are left out:
    ``C (d + e) n`` multiply-adds.
    """
    whole, rest = divmod(n, CHUNK)
    return whole * chunk_flops(CHUNK, d, e, channels, kind) + chunk_flops(rest, d, e, channels, kind)


def chunk_flops(size: int, d: int, e: int, channels: bool, kind: Kind) -> int:
    """FLOPs of one head and chunk of ``size`` tokens; one token alone scores no pairs."""
    times, values, states = {"plain": (1, 1, 2), "delta": (2, 1, 3), "removal": (4, 3, 4)}[kind]
    if size == 1:
        return states * 2 * d * e
    if is_narrow(d, e, channels, kind):
        return 3 * 2 * size * d * e
    blocks = [(start, min(INNER, size - start)) for start in range(0, size, INNER)]
    scored = sum(2 * rows * (start + rows) * d for start, rows in blocks) if channels else 2 * size * size * d
    return times * scored + values * 2 * size * size * e + states * 2 * size * d * e


@dataclass(frozen=True)
class Segment:
    """What some consecutive tokens do to any state before them: ``S ↦ transition S + state``.

    Segments merge associatively, the earlier one on the left, with ``Segment(I, 0)`` as identity, so that machines can
    share a sequence.

    Args:
        transition: ``(b, h, d, d)``, or its diagonal ``(b, h, d, 1)``, or one number a head ``(b, h, 1, 1)``.
        state: ``(b, h, d, e)``, what they leave behind nothing.
    """

    transition: Tensor
    state: Tensor

    def after(self, state: Tensor) -> Tensor:
        """The state behind them, of that before them."""
        return moved(self.transition, state) + self.state

    def __add__(self, later: Segment) -> Segment:
        return Segment(moved(later.transition, self.transition), later.after(self.state))


def moved(transition: Tensor, state: Tensor) -> Tensor:
    """``transition state``, where a transition of one column is a diagonal."""
    return transition * state if transition.shape[-1] == 1 else transition @ state


def segment(inputs: Inputs) -> Segment:
    """The `Segment` of some tokens: a scan, and with a delta rule or a removal one of the identity, nothing written."""
    b, h, _, d = inputs.k.shape
    state = scan(inputs, inputs.v.new_zeros(b, h, d, inputs.v.shape[3]))[1]
    if inputs.beta is None and inputs.erase_key is None:
        return Segment(kept_share(inputs), state)
    identity = torch.eye(d, dtype=inputs.v.dtype, device=inputs.v.device).expand(b, h, d, d)
    silent = replace(inputs, v=inputs.v.new_zeros(*inputs.v.shape[:3], d))
    return Segment(scan(silent, identity)[1], state)


def kept_share(inputs: Inputs) -> Tensor:
    """What decays and resets leave of a state, ``(b, h, d or 1, 1)``."""
    (b, h), decay = inputs.k.shape[:2], inputs.log_decay
    kept = inputs.v.new_ones(b, h, 1, 1) if decay is None else decay.sum(2).exp().reshape(b, h, -1, 1)
    return kept if inputs.resets is None else kept.masked_fill(inputs.resets.any(1)[:, None, None, None], 0)
