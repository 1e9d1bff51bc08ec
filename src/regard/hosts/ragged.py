"""Attention over heads that hold different tokens: a call for each kv head, the queries that share it as its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from regard.hosts.entries import Entries
from regard.hosts.softmax_call import SoftmaxCall, attend
from regard.hosts.store import Store
from regard.kernels import flash

FEW = 4
"""Queries of a kv head up to which two matrix products read its keys and values faster than the fused operator does."""


def attend_ragged(
    store: Store, entries: Sequence[Sequence[Entries]], call: SoftmaxCall, dropout: float, v_dim: int
) -> Tensor:
    """``A v (b, heads, n, e)`` of the newest queries, which the store has taken in, over each kv head's ``entries``.

    Rows of padding queries are zeros. Time and memory follow what is held.
    """
    plain = call.softcap is None and call.sinks is None and not dropout and call.q.shape[3] == v_dim
    if plain and store.real is None and call.device.type == "cpu":
        return by_heads([held.pair for row in entries for held in row], call.q, call.scaling)
    batch, heads, n, d = call.q.shape
    out, group = call.q.new_zeros(batch, heads, n, v_dim), heads // store.kv_heads
    for b, row in enumerate(entries):
        chosen = store.chosen(b, n)
        for h, held in enumerate(row):
            own = slice(h * group, (h + 1) * group)
            q = call.q[b, own] if chosen is None else call.q[b, own, chosen]
            r = q.shape[1]
            if not r:
                continue
            keys, values = (part[None, None] for part in held.pair)
            sinks = sunk(call, b, own, chosen, r)
            rows, mask = q.reshape(1, 1, group * r, d), causal(group, r, keys.shape[2], keys.device)
            part = replace(call, q=rows, k=keys, causal=False, mask=mask, bias=None, sinks=sinks)
            found, _ = attend(part, values, dropout)
            out[b, own, slice(None) if chosen is None else chosen] = found.view(group, r, v_dim)
    return out


def by_heads(pairs: Sequence[tuple[Tensor, Tensor]], q: Tensor, scaling: float) -> Tensor:
    """A v of plain calls without padding, with little else than the products: those are all of a short cache's step.

    Args:
        pairs: keys and values ``(t, d)`` of each kv head, of one sequence after the other. q: ``(b, heads, n, d)``.
    """
    batch, heads, n, d = q.shape
    group = batch * heads // len(pairs)
    rows, found = q.reshape(len(pairs), group * n, d), []
    if n == 1 and group <= FEW and q.dtype == torch.float32:
        for own, (keys, values) in zip((rows * scaling).unbind(), pairs, strict=True):
            found.append(torch.mm(torch.mm(own, keys.t()).softmax(-1), values))
        return torch.cat(found).view(batch, heads, n, d)
    for own, (keys, values) in zip(rows[:, None, None].unbind(), pairs, strict=True):
        mask = causal(group, n, len(keys), q.device)
        bias = None if mask is None else torch.where(mask, 0.0, -torch.inf).to(q.dtype)
        found.append(flash.attend(own, keys[None, None], values[None, None], False, bias, scaling)[0])
    return torch.cat(found).view(batch, heads, n, d)


def causal(group: int, r: int, t: int, device: torch.device) -> Tensor | None:
    """What the newest ``r`` tokens see of ``t`` keys, for each head of a group; None for everything."""
    if r == 1:
        return None
    seen = torch.ones(r, t, dtype=torch.bool, device=device).tril(t - r)
    return seen.expand(group, -1, -1).reshape(1, 1, group * r, t)


def sunk(call: SoftmaxCall, b: int, own: slice, chosen: Tensor | None, r: int) -> Tensor | None:
    """The sinks of some heads and rows of a sequence, ``(1, 1, group · r)``."""
    if call.sinks is None:
        return None
    found = call.sunk()
    found = found[min(b, len(found) - 1), own]
    found = found if chosen is None or found.shape[1] == 1 else found[:, chosen]
    return found.expand(-1, r).reshape(1, 1, -1)
