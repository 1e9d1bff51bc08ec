"""What a cache forgets: how much each layer and head keeps, what an entry is worth, and when the others go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.mechanism import accumulate_dtype

BLOCK = 1 << 21
"""Entries of A that are formed at once."""


@dataclass(frozen=True)
class View:
    """What one kv head of one sequence remembers in one layer, and the queries that a policy may judge it by.

    Entries stand in the order of their tokens. Positions count real tokens: padding is never among them.

    Args:
        layer, layers: index of the layer, and how many there are. head, kv_heads: likewise of the kv head.
        q: ``(group, r, d)``, queries of the heads that share it: in `Policy.observe` those of the pass, elsewhere the
            latest ones, `Policy.rows` of them where there are so many; positions are in them, and in the keys.
        keys, values: ``(t, d)`` and ``(t, e)``. positions: ``(t,)`` int64, ascending.
        seen: real tokens of the sequence so far; the last query is the newest of them.
        scaling, softcap, sunk: of the scores; ``sunk (group,)`` are sink logits, None for none.
        stats: what `Policy.keeps` of each entry, ``(t,)`` each; a policy writes new tensors into it.
        pages: likewise of runs of entries, in shapes of the policy's own; gone when something is evicted.
        states: ``(r, width)``, in `Policy.observe` the hidden states that the layer's attention was given for the
            queries, where the policy needs them, else None.
        out: ``(group, e)``, the heads' outputs for the newest token, where the policy needs them, else None.
        budget: how many entries the head may keep; 0 where that is not known yet.
    """

    layer: int
    layers: int
    head: int
    kv_heads: int
    q: Tensor
    keys: Tensor
    values: Tensor
    positions: Tensor
    seen: int
    scaling: float
    softcap: float | None = None
    sunk: Tensor | None = None
    stats: dict[str, Tensor] = field(default_factory=dict)
    out: Tensor | None = None
    budget: int = 0
    pages: dict[str, Tensor] = field(default_factory=dict)
    states: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.keys.shape[0]

    @property
    def query_positions(self) -> Tensor:
        """``(r,)`` int64."""
        return torch.arange(self.seen - self.q.shape[1], self.seen, device=self.q.device)

    def weights(self, rows: slice = slice(None)) -> Tensor:
        """A of some of the queries over the entries, ``(group, r, t)``; forgotten keys are gone."""
        dtype = accumulate_dtype(self.q.dtype)
        scores = self.scaling * self.q[:, rows].to(dtype) @ self.keys.to(dtype).T
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        later = self.positions > self.query_positions[rows, None]
        scores = scores.masked_fill(later, -torch.inf)
        if self.sunk is None:
            return scores.softmax(-1).nan_to_num(0.0)
        sunk = self.sunk.to(dtype)[:, None, None].expand(*scores.shape[:2], 1)
        return torch.cat([scores, sunk], -1).softmax(-1)[..., :-1]

    def blocks(self) -> Iterator[Tensor]:
        """All of `weights`, some rows at a time."""
        size = max(1, BLOCK // max(self.size * self.q.shape[0], 1))
        for start in range(0, self.q.shape[1], size):
            yield self.weights(slice(start, start + size))

    def columns(self) -> Tensor:
        """``(group, t)``: the sums of A's columns over the queries."""
        total = self.keys.new_zeros(self.q.shape[0], self.size, dtype=accumulate_dtype(self.q.dtype))
        for rows in self.blocks():
            total += rows.sum(1)
        return total


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Which entries of a model's cache are kept: the best by `scores`, as many as `budget` allows, chosen when `due`.

        kept_h = the b_h entries with the largest s_h,   Σ_h b_h = kv_heads · budget(layer)

    A policy has no memory of its own: what it has to know of an entry stands in ``view.stats``, goes along where the
    cache's sequences are exchanged or repeated, and is forgotten with the entry.

    Args:
        sinks: the first tokens, always kept. recent: the newest, likewise.
        every: while decoding, evict when heads hold that many entries too many.

    Raises:
        ValueError: a number below zero, or ``every`` below one.
    """

    sinks: int = 0
    recent: int = 0
    every: int = 1

    keeps: ClassVar[Mapping[str, float]] = MappingProxyType({})
    """What is noted of each entry, by name, and its value for a new one."""
    needs_out: ClassVar[bool] = False
    """Whether `View.out` is wanted."""
    needs_states: ClassVar[bool] = False
    """Whether `View.states` are."""
    forgets: ClassVar[bool] = True
    """Whether it ever evicts."""
    reads: ClassVar[bool] = False
    """Whether it reads less than it keeps"""
    resumable: ClassVar[bool] = True
    """Whether a text in chunks, all kept until its end, is judged as in one pass."""

    def __post_init__(self) -> None:
        if min(self.sinks, self.recent) < 0 or self.every < 1:
            what = f"{self.sinks}, {self.recent}, {self.every}"
            raise wrong("sinks, recent, every", what, "at least 0, 0 and 1")

    @property
    def rows(self) -> int:
        """How many of the latest queries `scores` reads."""
        return 0

    @property
    def forced(self) -> int:
        """Entries of a head that are kept whatever their scores: the smallest budget."""
        return self.sinks + self.recent

    def budget(self, size: int, layer: int, layers: int, n: int) -> int:
        """Entries that a kv head of this layer keeps, on average over its heads.

        Args:
            size: that a kv head keeps on average over all layers. n: real tokens of the prompt.
        """
        return size

    def allot(self, views: Sequence[View], scores: Sequence[Tensor], budget: int) -> Sequence[int]:
        """How many entries each kv head of a layer keeps, ``kv_heads · budget`` together; by default all the same."""
        return [budget] * len(views)

    def observe(self, view: View) -> None:
        """Is shown every pass, to note in ``view.stats`` what `keeps` names."""

    def scores(self, view: View) -> Tensor:
        """What each entry is worth, ``(t,)``; larger is better, +∞ always keeps."""
        raise NotImplementedError

    def layer_scores(self, views: Sequence[View]) -> Sequence[Tensor]:
        """`scores` of all kv heads of a layer, where one depends on others; of equal lengths unless budgets differ."""
        return [self.scores(view) for view in views]

    def due(self, over: float, decoding: bool) -> bool:
        """Whether to evict after a pass that leaves ``over`` entries too many in a head, on average."""
        return over >= self.every if decoding else over > 0

    @property
    def moves(self) -> bool:
        """Whether positions are those in the cache: keys that stay move up, as `moved` says, when others go."""
        return False

    def moved(self, kept: Tensor, size: int) -> Tensor:
        """By how many positions the keys at the places ``kept (r,)``, of ``size``, move: as many as go behind them."""
        behind = torch.arange(len(kept) - 1, -1, -1, device=kept.device)
        return size - 1 - kept - behind

    def protected(self, view: View) -> Tensor:
        """``(t,)`` bool: the sinks and the recent tokens."""
        return (view.positions < self.sinks) | (view.positions >= view.seen - self.recent)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        """Small instances that the laws of policies examine: see `regard.laws.policy`."""
        return sampled(cls())


@dataclass(frozen=True, kw_only=True)
class Reader(Policy):
    """A policy that keeps everything and, while decoding, reads less: `select` names the entries, `source` who chooses.

    A pass of several tokens reads everything.

    Args:
        sinks, recent, every: nothing is evicted, so that these say nothing here.
    """

    forgets: ClassVar[bool] = False
    reads: ClassVar[bool] = True

    def due(self, over: float, decoding: bool) -> bool:
        return False

    def scores(self, view: View) -> Tensor:
        raise wrong("scores", f"{type(self).__name__}, which evicts nothing", "a policy that forgets", TypeError)

    def select(self, views: Sequence[View]) -> Sequence[Tensor] | None:
        """The places of the entries that each kv head reads, ascending, the newest among them; None for all.

        ``view.budget`` says how many they may be, ``view.q`` holds the query.
        """
        raise NotImplementedError

    def source(self, layer: int, layers: int) -> int | None:
        """The layer by whose choice this one reads, itself or one before; None: it reads everything."""
        return layer


def sampled(*policies: Policy) -> list[Sample]:
    """Policies as examples for their laws."""
    return [Sample(f"{index}: {policy!r}"[:60], policy) for index, policy in enumerate(policies)]


def best(scores: Tensor, count: int) -> Tensor:
    """The places of the ``count`` largest scores, ascending; of equal ones the later."""
    if count >= len(scores):
        return torch.arange(len(scores), device=scores.device)
    order = scores.flip(0).argsort(descending=True, stable=True)[:count]
    return (len(scores) - 1 - order).sort().values


def levelled(sizes: Sequence[int], total: int) -> list[int]:
    """How much each of several heads keeps of what it has, ``total`` together: the same, but those that have less all.

    Where all have less than ``total`` together, the last one is given what is left.
    """
    counts, left = [0] * len(sizes), total
    order = sorted(range(len(sizes)), key=lambda index: sizes[index])
    for place, index in enumerate(order):
        share = left // (len(order) - place)
        counts[index] = left if place == len(order) - 1 else min(sizes[index], share)
        left -= counts[index]
    return counts


def shared_out(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that add up to ``total``, as near to the ``shares`` of it as can be: by largest remainders."""
    exact = [total * share / sum(shares) for share in shares]
    whole = [int(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda index: whole[index] - exact[index])
    for index in order[: total - sum(whole)]:
        whole[index] += 1
    return whole
