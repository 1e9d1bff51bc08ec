"""The scan for few values a head, whose channels decay apart: states cost less than pairs of tokens."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

NARROW = 4
"""Values of a head up to which it is taken: pairs cost 16 exponentials a channel and token, states one."""
LARGE = 1 << 13
"""Numbers of a state that are work enough for a step of its own."""


def narrow_scan(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, resets: Tensor | None, state: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Outputs and the last state of `gated.scan` without a delta rule, with decays of channels.

        S_t = exp(log_decay_t) S_{t−1} + k_t v_tᵀ,   o_t = S_tᵀ q_t

    Token by token where the state is `LARGE` and on a CPU; else a step does a token of every chunk of ``size``, each
    from nothing, and what stood before chunk c is added: (exp(D_t) S_c)ᵀ q_t, D_t the log decays since its start.

    Shapes: ``q, k, log_decay (b, h, n, d)``; ``v (b, h, n, e)``; ``resets (b, n)``; ``state (b, h, d, e)``; n is a
    multiple of ``size`` -> ``(b, h, n, e)``, ``(b, h, d, e)``. Cost: 3 multiply-adds for each number of the state.
    """
    gates = log_decay.exp()
    if resets is not None:
        gates = gates.masked_fill(resets[:, None, :, None], 0)
    if state.numel() >= LARGE and state.device.type == "cpu":
        return cast(Any, Tokens.apply)(q, k, v, gates, state)
    q, k, v, gates, decay = (x.unflatten(2, (-1, size)) for x in (q, k, v, gates, log_decay))
    written = (k[..., None] * v[..., None, :]).unbind(3)
    states = [written[0]]
    for gate, new in zip(gates[..., None].unbind(3)[1:], written[1:], strict=True):
        states.append(torch.addcmul(new, states[-1], gate))
    total, before = decay.cumsum(3).exp(), []
    if resets is not None:
        total = total.masked_fill((resets.unflatten(1, (-1, size)).cumsum(2) > 0)[:, None, ..., None], 0)
    for end, kept in zip(states[-1].unbind(2), total[..., -1, :, None].unbind(2), strict=True):
        before.append(state)
        state = torch.addcmul(end, state, kept)
    inside = (torch.stack(states, dim=3) * q[..., None]).sum(-2)
    return (inside + (q * total) @ torch.stack(before, dim=2)).flatten(2, 3), state


class Tokens(torch.autograd.Function):
    """Token by token, with what the state was at each of them where gradients are wanted."""

    @staticmethod
    def forward(ctx, q, k, v, gates, state):
        outs, states, wanted = [], [state], any(ctx.needs_input_grad)
        for queries, keys, values, kept in zip(*(x.unbind(2) for x in (q, k, v, gates)), strict=True):
            state = torch.addcmul(keys[..., None] * values[..., None, :], state, kept[..., None])
            outs.append((queries[..., None] * state).sum(-2))
            if wanted:
                states.append(state)
        ctx.save_for_backward(q, k, v, gates, *states)
        ctx.set_materialize_grads(False)
        return torch.stack(outs).movedim(0, 2), state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, carried):
        q, k, v, gates, *states = ctx.saved_tensors
        carried = torch.zeros_like(states[0]) if carried is None else carried
        grad = torch.zeros_like(v) if grad is None else grad
        tokens, found = zip(*(x.unbind(2) for x in (q, k, v, gates, grad)), strict=True), []
        around = zip(list(tokens), states[:-1], states[1:], strict=True)
        for (queries, keys, values, kept, upstream), before, after in reversed(list(around)):
            reading = upstream[..., None, :]
            carried = torch.addcmul(carried, queries[..., None], reading)
            of_query, of_key = (after * reading).sum(-1), (carried * values[..., None, :]).sum(-1)
            of_value, of_gate = (carried * keys[..., None]).sum(-2), (carried * before).sum(-1)
            found.append((of_query, of_key, of_value, of_gate))
            carried = carried * kept[..., None]
        return *(torch.stack(each[::-1]).movedim(0, 2) for each in zip(*found, strict=True)), carried
