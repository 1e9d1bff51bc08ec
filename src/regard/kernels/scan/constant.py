"""Linear attention as a chunked scan: matrix products inside blocks, a matrix carried between them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from regard.kernels.scan import fla
from regard.kernels.scan.decays import CLOSED
from regard.kernels.scan.gated import Inputs, in_flight
from regard.kernels.tiled import split

BLOCK = 64  # tokens whose scores are formed; larger costs FLOPs, smaller steps


def decayed(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Causal linear attention under a constant decay per head, from a state to a state.

        o_i = Σ_{j ≤ i} λ^{i-j} (q_i · k_j) v_j + λ^{i+1} q_i S,   S' = λ^n S + Σ_j λ^{n-1-j} k_j v_jᵀ

    λ is ``exp(log_decay)``; S is ``state``. Only powers λ^t with t ≥ 0 are formed, so strong decay is safe. The
    backward pass is three scans of the same form: dq attends from do over v to k, dk and dv run backwards in time.

    Shapes: ``q, k (b, h, n, d)``, ``v (b, h, n, e)``, ``log_decay (h,)``, ``state (b, h, d, e)`` ->
    ``(b, h, n, e)``, ``(b, h, d, e)``. Cost: `flops`; memory O(n (d + e)).
    """
    if v.numel() and fla.usable(state):
        return fla.scan(Inputs(q, k, v, log_decay.detach()[None, :, None].expand(q.shape[:3])), state)
    return cast(Any, Decayed.apply)(q, k, v, log_decay, state)


def flops(n: int, d: int, e: int) -> int:
    """FLOPs of one head's scan: scores and their values inside blocks, reading and writing the state."""
    whole, rest = divmod(n, BLOCK)
    return 2 * (d + e) * (whole * BLOCK**2 + rest**2) + 4 * n * d * e


class Decayed(torch.autograd.Function):
    """The scan, with a backward pass that keeps nothing but the inputs."""

    @staticmethod
    def forward(ctx, q, k, v, log_decay, state):
        ctx.save_for_backward(q, k, v, log_decay, state)
        ctx.set_materialize_grads(False)
        return chunks(q, k, v, log_decay, state)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_state):
        q, k, v, log_decay, state = ctx.saved_tensors
        n = q.shape[2]
        grad = torch.zeros_like(v) if grad is None else grad
        empty = torch.zeros_like(state)
        dq, _ = chunks(grad, v, k, log_decay, state.mT)
        dk, _ = backwards(v, grad, q, log_decay, empty.mT)
        dv, past = backwards(k, q, grad, log_decay, empty)
        dstate = past * powers(log_decay, torch.ones(1, device=q.device))[..., None]
        if grad_state is not None:
            left = powers(log_decay, torch.arange(n - 1, -1, -1, device=q.device))[..., None]
            dk = dk + left * (v @ grad_state.mT)
            dv = dv + left * (k @ grad_state)
            dstate = dstate + grad_state * powers(log_decay, torch.full((1,), n, device=q.device))[..., None]
        return dq, dk, dv, None, dstate


def backwards(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The scan from the last token to the first."""
    out, state = chunks(q.flip(2), k.flip(2), v.flip(2), log_decay, state)
    return out.flip(2), state


def powers(log_decay: Tensor, exponents: Tensor) -> Tensor:
    """``λ^t``: ``(h, *exponents.shape)``; λ may be zero, whose log_decay is −inf."""
    return torch.exp(log_decay.clamp(min=-CLOSED).view(-1, *[1] * exponents.dim()) * exponents)


def chunks(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The scan over chunks of whole blocks, then over the rest as one short block."""
    n = q.shape[2]
    out, whole = torch.empty_like(v), n - n % BLOCK
    spans = [(span, BLOCK) for span in split(0, whole, in_flight(q, BLOCK))]
    for span, block in [*spans, *([(slice(whole, n), n - whole)] if n > whole else [])]:
        queries, keys, values = (x[:, :, span].unflatten(2, (-1, block)) for x in (q, k, v))
        out[:, :, span], state = blocks(queries, keys, values, log_decay, state)
    return out, state


def blocks(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One chunk: ``q, k (b, h, blocks, block, d)``, ``v (…, e)``; inside blocks at once, between them in order."""
    size = q.shape[3]
    steps = torch.arange(size, device=q.device, dtype=q.dtype)
    distance = steps[:, None] - steps
    mask = powers(log_decay, distance.clamp(min=0)).tril()[:, None]
    out = (q @ k.mT * mask) @ v
    written = (k * powers(log_decay, size - 1 - steps)[:, None, :, None]).mT @ v
    decay, before = powers(log_decay, steps.new_tensor([size]))[..., None], []
    for update in written.unbind(2):
        before.append(state)
        state = state * decay + update
    faded = q * powers(log_decay, steps + 1)[:, None, :, None]
    return (out + faded @ torch.stack(before, dim=2)).flatten(2, 3), state
