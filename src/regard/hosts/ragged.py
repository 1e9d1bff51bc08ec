"""Attention over heads that hold different tokens: a call for each kv head, the queries that share it as its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from regard.hosts.softmax_call import SoftmaxCall, attend
from regard.hosts.store import Entries, Store


def attend_ragged(
    store: Store, entries: Sequence[Sequence[Entries]], call: SoftmaxCall, dropout: float, v_dim: int
) -> Tensor:
    """``A v (b, heads, n, e)`` of the newest queries, which the store has taken in, over each kv head's ``entries``.

    Rows of padding queries are zeros. Time and memory follow what is held.
    """
    out = call.q.new_zeros(*call.q.shape[:3], v_dim)
    group = call.q.shape[1] // store.kv_heads
    for b, heads in enumerate(entries):
        chosen = store.chosen(b, call.n)
        for h, held in enumerate(heads):
            own = slice(h * group, (h + 1) * group)
            q = call.q[b, own] if chosen is None else call.q[b, own, chosen]
            if q.shape[1]:
                keys, values = held.pair
                part = folded(call, q, keys, b, own, chosen)
                found = attend(part, values[None, None], dropout)[0].view(group, q.shape[1], -1)
                if chosen is None:
                    out[b, own] = found
                else:
                    out[b, own, chosen] = found
    return out


def folded(call: SoftmaxCall, q: Tensor, keys: Tensor, b: int, own: slice, chosen: Tensor | None) -> SoftmaxCall:
    """The call of ``q (group, r, d)``, the newest tokens, over the ``keys (t, d)`` of one head, causal."""
    group, r, d = q.shape
    mask = None
    if r > 1:
        seen = torch.ones(r, len(keys), dtype=torch.bool, device=q.device).tril(len(keys) - r)
        mask = seen.expand(group, -1, -1).reshape(1, 1, group * r, -1)
    sinks = None
    if call.sinks is not None:
        sunk = call.sunk()
        sunk = sunk[min(b, len(sunk) - 1), own]
        sunk = sunk if chosen is None or sunk.shape[1] == 1 else sunk[:, chosen]
        sinks = sunk.expand(-1, r).reshape(1, 1, group * r)
    return replace(
        call, q=q.reshape(1, 1, group * r, d), k=keys[None, None], causal=False, mask=mask, bias=None, sinks=sinks
    )
