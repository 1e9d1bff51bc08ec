"""One attention call under edits: its inputs, its scores, the masses of groups of keys and the heads' outputs.

Mass that moves between groups of keys, while the shares within each group stay, needs no map: with one `Partial` a
group, its output and log-sum-exp,

    A' v = Σ_g w_g · out_g,   m_g = exp(lse_g − lse),   w = f(m)

which is the fused kernel over each group's keys, in prefill and in decoding alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from regard.core.edit import Edit, Place, uses
from regard.core.errors import wrong
from regard.core.mechanism import accumulate_dtype, repeat_heads
from regard.hosts.softmax_call import (
    AttentionMap,
    AttentionRows,
    SoftmaxCall,
    attend,
    dense,
    grouped,
    log_sum_exp,
    masked_scores,
)

ROWS_AT_ONCE = 1 << 22
"""Entries of a mask of one group's keys that are formed at once."""


def edited_inputs(
    edits: Sequence[Edit], q: Tensor, k: Tensor, v: Tensor, place: Place
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v after the edits of queries and of values, in their order."""
    for edit in edits:
        if uses(edit, "queries") and (found := edit.queries(q, k, place)) is not None:
            rows, keys = edit.where.entries(place)[..., None], edit.where.chosen_keys(place)[:, None, :, None]
            fresh_q, fresh_k = found
            q = q if fresh_q is q else torch.where(rows, fresh_q.to(q.dtype), q)
            k = k if fresh_k is k else of_heads(edit, k, fresh_k, keys, place)
        if uses(edit, "values") and (fresh := edit.values(v, place)) is not None:
            v = of_heads(edit, v, fresh, edit.where.chosen_keys(place)[:, None, :, None], place)
    return q, k, v


def of_heads(edit: Edit, old: Tensor, new: Tensor, keys: Tensor, place: Place) -> Tensor:
    """``old (b, kv_heads, m, d)``, ``new`` for some heads and keys; repeated where heads that share one differ."""
    heads = edit.where.chosen_heads(place)
    shared = heads.view(old.shape[1], -1)
    if not bool((shared.all(1) == shared.any(1)).all()):
        old, new = repeat_heads(old, place.heads), repeat_heads(new, place.heads)
        shared = heads[:, None]
    return torch.where(shared.any(1)[None, :, None, None] & keys, new.to(old.dtype), old)


def edited_scores(edits: Sequence[Edit], call: SoftmaxCall, place: Place) -> SoftmaxCall:
    """The call with what the edits add to its scores, and without the keys that they hide."""
    for edit in edits:
        if not uses(edit, "scores") or (added := edit.scores(place)) is None:
            continue
        meant = edit.where.entries(place)[..., None] & edit.where.chosen_keys(place)[:, None, None]
        added = torch.as_tensor(added, dtype=accumulate_dtype(call.q.dtype), device=call.device)
        seen = ~(meant & (added == -torch.inf))
        added = torch.where(meant & seen, added, 0.0)
        if not bool(seen.all()):
            call = replace(call, mask=seen if call.mask is None else call.mask & seen)
        if bool((added != 0).any()):
            call = replace(call, bias=added if call.bias is None else call.bias + added)
    return call


def edited_heads(edits: Sequence[Edit], z: Tensor, place: Place) -> Tensor:
    """The heads' outputs ``(b, heads, n, e)`` after the edits of them, in their order."""
    for edit in edits:
        if uses(edit, "heads") and (fresh := edit.heads(z, place)) is not None:
            z = torch.where(edit.where.entries(place)[..., None], fresh.to(z.dtype), z)
    return z


@dataclass(frozen=True)
class Tilt:
    """How much more each group of keys weighs than it did.

    Args:
        ratio: ``(b, heads, n, g)``, w / m. groups: ``(b, 1 or heads, m)`` int64, from 0.
    """

    ratio: Tensor
    groups: Tensor

    def of(self, rows: Tensor, start: int, stop: int) -> Tensor:
        """The factor of each entry, ``(b, heads, rows, stop − start)``."""
        ratio = self.ratio[:, :, rows]
        groups = self.groups[:, :, None, start:stop].expand(*ratio.shape[:3], -1)
        return ratio.gather(3, groups)

    def select(self, heads: Tensor) -> Tilt:
        """That of some heads alone."""
        groups = self.groups if self.groups.shape[1] == 1 else self.groups[:, heads]
        return Tilt(self.ratio[:, heads], groups)


@dataclass(frozen=True)
class TiltedMap(AttentionMap):
    """A of a call whose groups of keys weigh more or less than they did."""

    tilt: Tilt | None = None

    @torch.no_grad()
    def strip(self, rows: Tensor) -> AttentionRows:
        strip = super().strip(rows)
        if self.tilt is None:
            return strip
        factor = self.tilt.of(rows, strip.start, strip.start + strip.weights.shape[3]).to(strip.weights.dtype)
        weights = strip.weights * factor
        logs = torch.where(weights > 0, strip.log_weights + factor.clamp(min=torch.finfo(factor.dtype).tiny).log(), 0)
        return AttentionRows(weights, logs, strip.start, strip.visible)


@dataclass(frozen=True)
class Outcome:
    """What an attention call gave.

    Args:
        out: ``(b, heads, n, e)``. call: as it was computed, hidden keys left out. lse: ``(b, heads, n)``.
        tilt: of its groups of keys, None where mass was left as it is.
    """

    out: Tensor
    call: SoftmaxCall
    lse: Tensor
    tilt: Tilt | None = None

    def weights(self) -> Tensor:
        """A, dense, with its gradient."""
        found = dense(self.call)
        if self.tilt is None:
            return found
        every = torch.arange(self.call.n, device=found.device)
        return found * self.tilt.of(every, 0, self.call.m).to(found.dtype)


def attend_edited(edits: Sequence[Edit], call: SoftmaxCall, v: Tensor, dropout: float, place: Place | None) -> Outcome:
    """The call under edits of scores and of masses, and the fused kernel alone where no edit does anything."""
    if place is None:
        return Outcome(*plain(call, v, dropout))
    call = edited_scores(edits, call, place)
    movers = [edit for edit in edits if uses(edit, "masses") and bool(edit.where.entries(place).any())]
    if not movers:
        return Outcome(*plain(call, v, dropout))
    meant = torch.stack([edit.where.entries(place) for edit in movers]).any(0)
    place = replace(place, columns=partial(columns_of, call, place))
    partitions = [groups_of(edit, place) for edit in movers]
    rows = meant.any(0).any(0).nonzero()[:, 0]
    moved = moved_rows(movers, call, v, dropout, place.of_rows(rows), partitions, rows)
    if moved is not None and bool(meant.all()):
        return moved
    out, call, lse = plain(call, v, dropout)
    if moved is None or moved.tilt is None:
        return Outcome(out, call, lse)
    chosen = meant[:, :, rows, None]
    out = out.index_copy(2, rows, torch.where(chosen, moved.out, out[:, :, rows]))
    ratio = moved.tilt.ratio.new_ones(*lse.shape, moved.tilt.ratio.shape[3])
    ratio = ratio.index_copy(2, rows, torch.where(chosen, moved.tilt.ratio, 1.0))
    return Outcome(out, call, lse.detach(), Tilt(ratio, moved.tilt.groups))


def moved_rows(
    movers: Sequence[Edit],
    call: SoftmaxCall,
    v: Tensor,
    dropout: float,
    place: Place,
    partitions: Sequence[Tensor],
    rows: Tensor,
) -> Outcome | None:
    """Some ``rows`` of the call, which ``place`` is about, under edits that move mass; None if none of them does."""
    sizes = torch.tensor([edit.group_count for edit in movers])
    partition = joint(partitions, sizes)
    parts = [attend_group(call, v, dropout, partition == group, rows) for group in range(int(sizes.prod()))]
    total = summed([lse for _, lse in parts])
    if call.sinks is not None:
        total = torch.logaddexp(total, call.sunk(rows))
    masses = torch.stack([torch.exp(lse - total.masked_fill(total == -torch.inf, 0)) for _, lse in parts], dim=3)
    moved = moved_masses(movers, masses, sizes, place)
    if moved is None:
        return None
    out = torch.stack([part.to(moved.dtype) * moved[..., group, None] for group, (part, _) in enumerate(parts)]).sum(0)
    ratio = torch.where(masses > 0, moved / masses.clamp(min=torch.finfo(masses.dtype).tiny), 0)
    return Outcome(out.to(v.dtype), call, total.detach(), Tilt(ratio.detach(), partition))


@torch.no_grad()
def columns_of(call: SoftmaxCall, place: Place) -> tuple[Tensor, Tensor]:
    """The sums of A's columns over real queries, and how many of these may see each key, ``(b, heads, m)`` each."""
    call = replace(call, **{name: value.detach() for name, value in vars(call).items() if isinstance(value, Tensor)})
    lse = log_sum_exp(call)
    source = AttentionMap(call, lse if call.sinks is None else torch.logaddexp(lse, call.sunk()))
    sums = torch.zeros(*call.q.shape[:2], call.m, dtype=source.lse.dtype, device=call.device)
    counts = torch.zeros_like(sums)
    for rows in call.blocks():
        strip, real = source.strip(rows), place.queries[:, None, rows, None]
        columns = slice(strip.start, strip.start + strip.weights.shape[3])
        seen = call.visible(rows, columns.start, columns.stop)
        sums[..., columns] += (strip.weights * real).sum(2)
        counts[..., columns] += (real if seen is None else real & seen).expand_as(strip.weights).sum(2)
    return sums, counts


def plain(call: SoftmaxCall, v: Tensor, dropout: float) -> tuple[Tensor, SoftmaxCall, Tensor]:
    """A call without edits of mass."""
    out, lse = attend(call, v, dropout)
    return out, call, lse


def summed(parts: Sequence[Tensor]) -> Tensor:
    """``log Σ exp`` of log-sum-exps; −∞, without a gradient, where all are."""
    stacked = torch.stack(list(parts))
    blind = (stacked == -torch.inf).all(0)
    return stacked.masked_fill(blind, 0).logsumexp(0).masked_fill(blind, -torch.inf)


def groups_of(edit: Edit, place: Place) -> Tensor:
    """An edit's partition of the keys: its own, or the keys that it is about (1) and the others (0)."""
    groups = edit.groups(place)
    if groups is None:
        return edit.where.chosen_keys(place).long()[:, None]
    if groups.dim() != 3 or groups.shape[2] != place.m or groups.shape[1] not in (1, place.heads):
        wanted = f"(batch, 1 or {place.heads}, {place.m})"
        raise wrong("groups", f"shape {tuple(groups.shape)} of {type(edit).__name__}", wanted)
    if groups.numel() and not 0 <= int(groups.min()) <= int(groups.max()) < edit.group_count:
        what = f"groups {int(groups.min())} to {int(groups.max())} of {type(edit).__name__}"
        raise wrong("groups", what, f"0 to {edit.group_count - 1}: so many does its group_count declare")
    return groups.long()


def joint(partitions: Sequence[Tensor], sizes: Tensor) -> Tensor:
    """The common refinement of several partitions of so many groups each."""
    codes = partitions[0]
    for partition, size in zip(partitions[1:], sizes[1:].tolist(), strict=True):
        codes = codes * size + partition
    return codes


def moved_masses(movers: Sequence[Edit], masses: Tensor, sizes: Tensor, place: Place) -> Tensor | None:
    """``masses (b, heads, n, g)`` of the common groups after each edit has moved those of its own; None if none has."""
    moved, changed = masses.unflatten(3, sizes.tolist()), False
    for axis, edit in enumerate(movers):
        others = [3 + other for other in range(len(sizes)) if other != axis]
        own = moved.sum(others) if others else moved
        if (wanted := edit.masses(own, place)) is None:
            continue
        wanted = torch.where(edit.where.entries(place)[..., None], wanted.to(own.dtype), own)
        ratio = torch.where(own > 0, wanted / own.clamp(min=torch.finfo(own.dtype).tiny), 0)
        for other in others:
            ratio = ratio.unsqueeze(other)
        moved, changed = moved * ratio, True
    return moved.flatten(3) if changed else None


def attend_group(call: SoftmaxCall, v: Tensor, dropout: float, members: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """``(out, lse)`` of ``rows`` over the keys in ``members (b, 1 or heads, m)`` alone, sinks left out."""
    columns = members.flatten(0, 1).any(0).nonzero()[:, 0]
    if len(columns) == 0:
        shape = (*call.q.shape[:2], len(rows))
        empty = call.q.new_full(shape, -torch.inf, dtype=accumulate_dtype(call.q.dtype))
        return v.new_zeros(*shape, v.shape[3]), empty
    size = max(1, ROWS_AT_ONCE // max(len(columns) * members.shape[0] * members.shape[1], 1))
    differentiated = torch.is_grad_enabled() and (call.q.requires_grad or call.k.requires_grad)
    compute = attend_differentiably if differentiated else attend
    found = []
    for some in rows.split(size):
        part = cut(call, some, columns, members)
        out, lse = compute(part, v[:, :, columns], dropout)
        assert part.mask is not None
        blind = ~part.mask.any(3)  # the fused kernel gives any number there
        out, lse = out.masked_fill(blind[..., None], 0), lse.masked_fill(blind, -torch.inf)
        found.append((out, lse.to(accumulate_dtype(call.q.dtype))))
    return torch.cat([out for out, _ in found], dim=2), torch.cat([lse for _, lse in found], dim=2)


def attend_differentiably(call: SoftmaxCall, v: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """`attend` of a call with a mask, dense, with a gradient of the log-sum-exp, too: masses follow from that."""
    assert call.mask is not None
    blind = ~call.mask.any(3)
    scores = masked_scores(call, torch.arange(call.n, device=call.device)).masked_fill(blind[..., None], 0)
    lse = scores.logsumexp(3)
    weights = torch.nn.functional.dropout(torch.exp(scores - lse[..., None]), dropout)
    return grouped(weights, v.to(weights.dtype)).to(v.dtype), lse


def cut(call: SoftmaxCall, rows: Tensor, columns: Tensor, members: Tensor) -> SoftmaxCall:
    """The call of some rows over some columns, of which each head sees its members."""
    mask = members[..., None, columns]
    if (seen := call.visible(rows, 0, call.m)) is not None:
        mask = mask & seen[..., columns]
    return replace(
        call,
        q=call.q[:, :, rows],
        k=call.k[:, :, columns],
        causal=False,
        window=None,
        mask=mask.expand(-1, -1, len(rows), -1),
        bias=None if call.bias is None else call.bias[..., rows, :][..., columns],
        sinks=None,
    )
