"""How A reaches those who read it: whole rows at a time, never all of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

CHUNK = 64
"""Neighbouring keys whose largest weight `Tile.peaks` gives."""


@dataclass(frozen=True)
class Tokens:
    """The ids of the tokens that the keys are, and where each stood before.

    Args:
        ids: ``(batch, m)`` int64.
    """

    ids: Tensor

    @cached_property
    def order(self) -> Tensor:
        """``(batch, m)`` int64: the slots sorted by id and, within an id, by slot."""
        return self.ids.argsort(dim=1, stable=True)

    @cached_property
    def rank(self) -> Tensor:
        """``(batch, m)`` int64: the place of each slot in `order`."""
        places = torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.order)
        return torch.empty_like(self.order).scatter_(1, self.order, places)

    @cached_property
    def earlier(self) -> Tensor:
        """``(batch, m)`` int64: how many earlier slots hold the same id."""
        ordered = self.ids.gather(1, self.order)
        places = torch.arange(ordered.shape[1], device=ordered.device).expand_as(ordered)
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        start = torch.where(first, places, 0).cummax(1).values
        return (places - start).gather(1, self.rank)

    @cached_property
    def last(self) -> Tensor:
        """``(batch, m)`` int64: the last earlier slot with the same id, -1 where there is none."""
        before = self.order.gather(1, (self.rank - 1).clamp(min=0))
        return torch.where(self.earlier > 0, before, -1)

    def occurrences(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every earlier occurrence of the tokens at ``slots (s,)``, each of the three ``(pairs,)``.

        Returns ``(batch index, index into slots, slot of the occurrence)``.
        """
        counts = self.earlier[:, slots]
        batch, which = torch.nonzero(counts, as_tuple=True)
        repeats = counts[batch, which]
        steps = torch.arange(int(repeats.sum()), device=slots.device) - (repeats.cumsum(0) - repeats).repeat_interleave(
            repeats
        )
        batch, which = batch.repeat_interleave(repeats), which.repeat_interleave(repeats)
        return batch, which, self.order[batch, self.rank[batch, slots[which]] - 1 - steps]


@dataclass(frozen=True)
class Tile:
    """Some whole rows of one layer's A.

    Keys have slots 0 … m − 1, padding included. In self-attention a query is named by the slot of its own token,
    so rows stay where they are when a cache grows; in cross-attention by its own index.

    Args:
        layer: index of the attention layer in the watched model, in order of execution.
        weights: ``(batch, heads, rows, w)``, the rows of A in float32 or float64 over the key slots
            ``start … start + w − 1``; outside of them, and where nothing may be seen, A is zero.
        rows: ``(rows,)`` int64, ascending slots of the queries.
        start: first key slot that ``weights`` cover. m: number of key slots.
        queries: ``(batch, rows)`` bool, False = a padding query, which no statistic may count.
        key_mask: ``(batch, m)`` bool, False = padding.
        causal: whether row i sees no key slot after i. cross: whether the keys are another sequence than the queries.
        visible: ``(batch or 1, heads or 1, rows, w)`` bool, what may be seen; None: all keys, or, if ``causal``, those
            up to the row.
        log_weights: like ``weights``, their logarithm, zero where they are hidden; None: not at hand.
        tokens: what the keys are, None where unknown.
        sequence: which sequence (or batch of them) of those that passed through the layer this is.
        share: fraction of the queries that are computed, less than one where rows are sampled.
    """

    layer: int
    weights: Tensor
    rows: Tensor
    start: int
    m: int
    queries: Tensor
    key_mask: Tensor
    causal: bool
    visible: Tensor | None = None
    log_weights: Tensor | None = None
    tokens: Tokens | None = None
    sequence: int = 0
    share: float = 1.0
    cross: bool = False

    @property
    def columns(self) -> slice:
        """The key slots that ``weights`` cover."""
        return slice(self.start, self.start + self.weights.shape[3])

    @cached_property
    def positions(self) -> Tensor:
        """``(batch, m)``: how many real keys stand before each slot, in the dtype of the weights."""
        return (self.key_mask.cumsum(1) - 1).clamp(min=0).to(self.weights.dtype)

    @property
    def own(self) -> Tensor:
        """``(batch or 1, rows)``: the positions of the queries; in another sequence than the keys', their indices."""
        return self.rows[None].to(self.weights.dtype) if self.cross else self.positions[:, self.rows]

    @cached_property
    def entropy(self) -> Tensor:
        """``(batch, heads, rows)``: −Σ_j A_ij log A_ij, in nats."""
        logs = (
            self.weights.abs().clamp(min=torch.finfo(self.weights.dtype).tiny).log()
            if self.log_weights is None
            else self.log_weights
        )
        return -torch.einsum("bhiw,bhiw->bhi", self.weights, logs)

    @cached_property
    def peaks(self) -> Tensor:
        """``(batch, heads, rows, ⌈w / CHUNK⌉)``: the largest weight of every `CHUNK` keys."""
        whole = self.weights.shape[3] // CHUNK * CHUNK
        parts = [self.weights[..., :whole].unflatten(3, (-1, CHUNK)).amax(4)] if whole else []
        if whole < self.weights.shape[3]:
            parts.append(self.weights[..., whole:].amax(3, keepdim=True))
        return torch.cat(parts, dim=3)

    def read(self, features: Tensor) -> Tensor:
        """``(batch, heads, rows, f)``: Σ_j A_ij f_j for ``features (batch or 1, m, f)``."""
        batch, heads, rows, width = self.weights.shape
        flat = self.weights.reshape(batch, heads * rows, width)
        return (flat @ features[:, self.columns].to(flat.dtype)).reshape(batch, heads, rows, -1)

    def at(self, slots: Tensor) -> Tensor:
        """``(batch, heads, rows)``: the weight of each row on its key ``slots (batch, rows)``, zero outside."""
        width = self.weights.shape[3]
        inside = (slots >= self.start) & (slots < self.start + width)
        index = (slots - self.start).clamp(0, width - 1)[:, None, :, None].expand(-1, self.weights.shape[1], -1, 1)
        return self.weights.gather(3, index)[..., 0] * inside[:, None]

    def fold(self, groups: Tensor) -> Tensor:
        """``(batch, heads, g, w)``: the sum of the real queries' rows in each of ``groups (g, rows)``."""
        counted = (groups[None] * self.queries[:, None, :]).to(self.weights.dtype)
        return counted[:, None] @ self.weights

    def seen(self, groups: Tensor) -> Tensor:
        """``(batch, heads or 1, g, w)``: how many real queries of each of ``groups (g, rows)`` may see each key."""
        counted = (groups[None] * self.queries[:, None, :]).to(self.weights.dtype)[:, None]
        slots = torch.arange(self.start, self.start + self.weights.shape[3], device=self.rows.device)
        real = self.key_mask[:, None, None, self.columns]
        if self.visible is not None:
            return counted @ self.visible.to(counted.dtype) * real
        if not self.causal:
            return counted.sum(3, keepdim=True) * real
        later = counted.flip(3).cumsum(3).flip(3)
        later = torch.cat([later, later.new_zeros(*later.shape[:3], 1)], dim=3)
        return later[..., torch.searchsorted(self.rows, slots)] * real


@runtime_checkable
class Probe(Protocol):
    """A mergeable statistic of A: a monoid fed tile by tile, so corpora are a map-reduce."""

    name: str

    def update(self, tile: Tile) -> None:
        """Takes in some rows."""
        ...

    def merge(self, other: Self) -> None:
        """Takes in what another probe of the same kind has seen."""
        ...

    def result(self) -> Any:
        """The statistic over all rows so far."""
        ...
