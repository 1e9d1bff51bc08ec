"""The algebra of patterns: which entries of A may be non-zero, from positions alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.patterns.cover import Cover

CELLS = 1 << 22
"""Entries of a mask that are looked at at a time."""
GLANCE = 64
"""Tokens of a block, evenly apart, by which a pair of blocks is often seen to be partial."""


@dataclass(frozen=True)
class Region:
    """Tokens in blocks.

    Args:
        tokens: ``(blocks, size)`` int64, a short block repeating its last token. run: each block is a run of
            consecutive tokens. box: each block is a box of a grid.
    """

    tokens: Tensor
    run: bool = True
    box: bool = False

    @classmethod
    def runs(cls, tokens: Tensor, size: int) -> Region:
        """Consecutive ``tokens (t,)`` in blocks of ``size``."""
        blocks = -(-len(tokens) // size)
        index = torch.arange(blocks * size, device=tokens.device).clamp(max=max(len(tokens) - 1, 0))
        return cls(tokens[index].view(blocks, size))

    @classmethod
    def classes(cls, tokens: Tensor, size: int, period: int) -> Region:
        """Consecutive ``tokens (t,)`` in blocks of ``size`` of one residue class modulo ``period``."""
        if not len(tokens):
            return cls.runs(tokens, size)
        first, stop = int(tokens[0]), int(tokens[-1]) + 1
        begins = torch.arange(first, min(first + period, stop), device=tokens.device)
        counts = -(-(stop - begins) // period)
        places = torch.arange(-(-int(counts.max()) // size) * size, device=tokens.device)
        each = begins[:, None] + period * places.clamp(max=counts[:, None] - 1)
        held = (places[None, ::size] < counts[:, None]).flatten()
        return cls(each.view(-1, size)[held], run=False)

    def few(self, most: int) -> Region:
        """About ``most`` tokens of each block, its first and last among them."""
        size = self.tokens.shape[1]
        return Region(self.tokens[:, torch.linspace(0, size - 1, min(most, size)).round().long()], run=False)

    @cached_property
    def low(self) -> Tensor:
        return self.tokens.amin(1)

    @cached_property
    def high(self) -> Tensor:
        return self.tokens.amax(1)

    @cached_property
    def fresh(self) -> Tensor:
        """bool like ``tokens``: those that do not stand earlier in their block too."""
        ranked, places = self.tokens.sort(dim=1, stable=True)
        again = torch.zeros_like(ranked, dtype=torch.bool)
        again[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
        return ~torch.zeros_like(again).scatter_(1, places, again)

    def residue(self, period: int) -> Tensor:
        """``(blocks,)`` int64: the residue class that all tokens of a block have, −1 where they have several."""
        found = self.tokens % period
        return torch.where((found == found[:, :1]).all(1), found[:, 0], -1)

    def __getitem__(self, part: slice | Tensor) -> Region:
        return Region(self.tokens[part], self.run, self.box)


@dataclass(frozen=True)
class Bounds:
    """What is known of blocks without looking at their entries, each ``(query blocks, key blocks)`` bool.

    Args:
        some_low, some_high: some entry is surely, is possibly visible. all_low, all_high: all are.
    """

    some_low: Tensor
    some_high: Tensor
    all_low: Tensor
    all_high: Tensor

    @classmethod
    def exactly(cls, some: Tensor, every: Tensor) -> Bounds:
        """Both known."""
        return cls(some, some, every, every)

    @classmethod
    def at_most(cls, some: Tensor, every: Tensor) -> Bounds:
        """Some possibly; all surely where ``every``."""
        return cls(every, some, every, some)

    def __and__(self, other: Bounds) -> Bounds:
        return Bounds(
            (self.some_low & other.all_low) | (self.all_low & other.some_low),
            self.some_high & other.some_high,
            self.all_low & other.all_low,
            self.all_high & other.all_high,
        )

    def __invert__(self) -> Bounds:
        return Bounds(~self.all_high, ~self.all_low, ~self.some_high, ~self.some_low)


class Pattern:
    """The base of every pattern: a set of pairs (query, key) of positions among ``m`` tokens.

    A subclass writes `visible`; `bounds` where blocks can be judged without looking at their entries; `future` where
    keys can be forgotten. Patterns compose with ``&``, ``|`` and ``~``. Query i of n stands at position i + m − n.
    """

    heads: int = 1

    endless: bool = False
    """Whether `visible` says the same of two positions however many tokens there are."""

    crossed: bool = False
    """Whether the queries are of another sequence, so that none of them stands before the first key."""

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        """bool, whether the query at position ``i`` may see the key at ``j``: both int64, broadcast together."""
        raise NotImplementedError

    def bounds(self, queries: Region, keys: Region, m: int) -> Bounds:
        """What is known of every pair of blocks."""
        shape = (len(queries.tokens), len(keys.tokens))
        some = torch.ones(shape, dtype=torch.bool, device=keys.tokens.device)
        return Bounds.at_most(some, torch.zeros_like(some))

    def future(self, j: Tensor, i: int) -> Tensor:
        """bool like ``j``: whether a query at position ``i`` or later might see the key at ``j``."""
        return torch.ones_like(j, dtype=torch.bool)

    def check(self, m: int) -> None:
        """Raises a ValueError if the pattern is not for ``m`` tokens."""

    @property
    def grid(self) -> tuple[int, ...] | None:
        """The sizes of the grid that the pattern is drawn on, None for a line of any length."""
        return None

    @property
    def period(self) -> int:
        """All pairs that it shows stand a multiple of so many tokens apart; 1 where no more is known."""
        return 1

    def head(self, index: int) -> Pattern:
        """The pattern of one head."""
        return self

    def __and__(self, other: Pattern) -> Pattern:
        return And(self, other)

    def __or__(self, other: Pattern) -> Pattern:
        return Not(And(Not(self), Not(other)), f"{self} | {other}")

    def __invert__(self) -> Pattern:
        return Not(self)

    def dense(
        self, n: int, m: int | None = None, device: torch.device | str = "cpu", rows: slice | None = None
    ) -> Tensor:
        """``(heads, n, m)`` bool, or some ``rows`` of it."""
        m = n if m is None else m
        first, last, _ = (rows or slice(0, n)).indices(n)
        if not m:
            return torch.zeros(self.heads, last - first, 0, dtype=torch.bool, device=device)
        self.check(m)
        first, last = m - n + first, m - n + last
        seen = torch.stack([self.head(h).rows(first, last, m, device) for h in range(self.heads)])
        return seen if self.crossed or first >= 0 else seen & (torch.arange(first, last, device=device) >= 0)[:, None]

    def rows(self, first: int, last: int, m: int, device: torch.device | str = "cpu") -> Tensor:
        """``(last − first, m)`` bool: `visible` of queries at positions ``first`` to ``last − 1`` and all keys."""
        i, j = torch.arange(first, last, device=device)[:, None], torch.arange(m, device=device)
        return self.visible(i, j, m).expand(last - first, m)

    def flex_mask(self, m: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """``mask_mod`` of FlexAttention for as many queries as the ``m`` keys."""
        self.check(m)
        parts = [self.head(h) for h in range(self.heads)]

        def mask(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            found = parts[0].visible(i, j, m)
            for h, part in enumerate(parts[1:], 1):
                found = torch.where(head == h, part.visible(i, j, m), found)
            return found

        return mask

    def cover(self, n: int, m: int | None = None, rows: int = 128, cols: int = 128) -> Cover:
        """Which blocks of ``rows × cols`` are empty, partial and full, without the dense mask."""
        m = n if m is None else m
        if min(rows, cols) < 1:
            raise wrong("rows, cols", f"{rows}, {cols}", "at least 1 each")
        return self.cover_of(Region.runs(torch.arange(m - n, m), rows), Region.runs(torch.arange(m), cols), n, m)

    def cover_of(self, queries: Region, keys: Region, n: int, m: int, exact: bool = True) -> Cover:
        """The cover of any blocks of tokens; with ``exact`` False, full blocks may be listed as partial."""
        self.check(m)
        counts, columns, full = [], [], []
        for h in range(self.heads):
            pattern = self.head(h)
            step = max(1, CELLS // max(len(keys.tokens), 1))
            for start in range(0, len(queries.tokens), step):
                some, every = pattern.settled(queries[start : start + step], keys, m, exact)
                counts.append(some.sum(1))
                columns.append(some.nonzero()[:, 1])
                full.append(every[some])
        # Boxes at a border are smaller: they count as whole ones, which repeat some of their tokens.
        n, m = n if queries.run else queries.tokens.numel(), m if keys.run else keys.tokens.numel()
        none = torch.zeros(1, dtype=torch.int64)
        offsets = torch.cat([none, torch.cat(counts).cumsum(0)]) if counts else none
        empty = none[:0]
        return Cover(
            *(n, m, queries.tokens.shape[1], keys.tokens.shape[1], offsets, torch.cat(columns) if columns else empty),
            *(torch.cat(full) if full else empty.bool(), self.heads),
        )

    def settled(self, queries: Region, keys: Region, m: int, exact: bool) -> tuple[Tensor, Tensor]:
        """``(some, all)`` of every pair of blocks, those in doubt looked at entry by entry."""
        found = self.bounds(queries, keys, m)
        some, every = found.some_high.clone(), found.all_low.clone()
        doubt = (found.some_low != found.some_high) | ((found.all_low != found.all_high) if exact else False)
        looks = [(queries, keys)]
        if queries.tokens.shape[1] * keys.tokens.shape[1] > GLANCE**2:
            looks.insert(0, (queries.few(GLANCE), keys.few(GLANCE)))
        for looked in looks:
            for part, seen in self.seen(*looked, doubt.nonzero(), m):
                a, b = part.unbind(1)
                some[a, b], every[a, b] = seen.any(2).any(1), seen.all(2).all(1)
                doubt[a, b] = some[a, b] == every[a, b]  # a partial block shows in any tokens that differ
        return some, every

    def seen(self, queries: Region, keys: Region, blocks: Tensor, m: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`visible` of ``blocks (pairs, 2)``, some at a time, with ``(some, rows, cols)`` bool of them."""
        rows, cols = queries.tokens.shape[1], keys.tokens.shape[1]
        for part in blocks.split(max(1, CELLS // max(rows * cols, 1))):
            a, b = part.unbind(1)
            found = self.visible(queries.tokens[a][:, :, None], keys.tokens[b][:, None, :], m)
            yield part, found.expand(len(part), rows, cols)

    def pairs(self, n: int, m: int | None = None) -> int:
        """Visible pairs of all heads, without the dense mask."""
        m = n if m is None else m
        if not n or not m:
            return 0
        self.check(m)
        (queries, wide), (keys, far) = (
            (Region.runs(tokens, 64), Region.runs(tokens, 64 * 64))
            for tokens in (torch.arange(m - n, m), torch.arange(m))
        )
        total, within = 0, torch.arange(64)
        for pattern in map(self.head, range(self.heads)):
            for at, near in enumerate(pattern.bounds(wide, far, m).some_high):
                chosen = (near.nonzero() * 64 + within).flatten()
                rows, cols = queries[at * 64 : (at + 1) * 64], keys[chosen[chosen < len(keys.tokens)]]
                some, _ = pattern.settled(rows, cols, m, exact=False)
                for part, seen in pattern.seen(rows, cols, some.nonzero(), m):
                    a, b = part.unbind(1)
                    total += int((seen & rows.fresh[a][:, :, None] & cols.fresh[b][:, None, :]).sum())
        return total

    def density(self, n: int, m: int | None = None) -> float:
        """Visible pairs over all pairs."""
        m = n if m is None else m
        return self.pairs(n, m) / max(self.heads * n * m, 1)

    def reach(self, n: int, layers: int, head: int = 0) -> Tensor:
        """``(n, n)`` bool: from which tokens something can get to each one through ``layers`` layers."""
        step = self.dense(n)[head].float() + torch.eye(n)
        found = torch.eye(n)
        for _ in range(layers):
            found = ((step @ found) > 0).float()
        return found > 0


@dataclass(frozen=True, repr=False)
class And(Pattern):
    """What both show."""

    first: Pattern
    second: Pattern

    def __post_init__(self) -> None:
        if self.first.grid and self.second.grid and self.first.grid != self.second.grid:
            raise wrong("&", f"patterns on grids {self.first.grid} and {self.second.grid}", "patterns on one grid")
        if 1 not in (self.first.heads, self.second.heads) and self.first.heads != self.second.heads:
            raise wrong("&", f"patterns of {self.first.heads} and {self.second.heads} heads", "as many, or one of 1")

    def __repr__(self) -> str:
        return f"{bracketed(self.first)} & {bracketed(self.second)}"

    @cached_property
    def hashed(self) -> int:
        return hash((self.first, self.second))

    def __hash__(self) -> int:  # once: plans are looked up by patterns in every call
        return self.hashed

    @property
    def heads(self) -> int:
        return max(self.first.heads, self.second.heads)

    @property
    def grid(self) -> tuple[int, ...] | None:
        return self.first.grid or self.second.grid

    @property
    def endless(self) -> bool:
        return self.first.endless and self.second.endless

    @property
    def period(self) -> int:
        return math.lcm(self.first.period, self.second.period)

    def head(self, index: int) -> Pattern:
        return self if self.heads == 1 else And(self.first.head(index), self.second.head(index))

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        return self.first.visible(i, j, m) & self.second.visible(i, j, m)

    def rows(self, first: int, last: int, m: int, device: torch.device | str = "cpu") -> Tensor:
        return self.first.rows(first, last, m, device) & self.second.rows(first, last, m, device)

    def bounds(self, queries: Region, keys: Region, m: int) -> Bounds:
        return self.first.bounds(queries, keys, m) & self.second.bounds(queries, keys, m)

    def future(self, j: Tensor, i: int) -> Tensor:
        return self.first.future(j, i) & self.second.future(j, i)

    def check(self, m: int) -> None:
        self.first.check(m)
        self.second.check(m)


@dataclass(frozen=True, repr=False)
class Not(Pattern):
    """What the other hides."""

    inner: Pattern
    text: str = ""

    def __repr__(self) -> str:
        return self.text or f"~{bracketed(self.inner)}"

    @property
    def heads(self) -> int:
        return self.inner.heads

    @property
    def grid(self) -> tuple[int, ...] | None:
        return self.inner.grid

    @property
    def endless(self) -> bool:
        return self.inner.endless

    @property
    def period(self) -> int:
        inner = self.inner
        if isinstance(inner, Not):
            return inner.inner.period
        return math.gcd(Not(inner.first).period, Not(inner.second).period) if isinstance(inner, And) else 1

    def head(self, index: int) -> Pattern:
        return self if self.heads == 1 else Not(self.inner.head(index), self.text)

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        return ~self.inner.visible(i, j, m)

    def rows(self, first: int, last: int, m: int, device: torch.device | str = "cpu") -> Tensor:
        return ~self.inner.rows(first, last, m, device)

    def bounds(self, queries: Region, keys: Region, m: int) -> Bounds:
        return ~self.inner.bounds(queries, keys, m)

    def future(self, j: Tensor, i: int) -> Tensor:
        inner = self.inner
        if isinstance(inner, Not):
            return inner.inner.future(j, i)
        if isinstance(inner, And):  # ~(a & b) = ~a | ~b
            return Not(inner.first).future(j, i) | Not(inner.second).future(j, i)
        return torch.ones_like(j, dtype=torch.bool)

    def check(self, m: int) -> None:
        self.inner.check(m)


def bracketed(pattern: Pattern) -> str:
    """Its text, in brackets if it is made of several."""
    text = str(pattern)
    return f"({text})" if isinstance(pattern, And) or " | " in text else text


class PerHead(Pattern):
    """A pattern for each head.

    Args:
        patterns: one for each, each of one head.
    """

    def __init__(self, *patterns: Pattern | Sequence[Pattern]) -> None:
        flat = [p for part in patterns for p in ([part] if isinstance(part, Pattern) else part)]
        if not flat or any(p.heads != 1 for p in flat):
            raise wrong("patterns", f"{len(flat)} patterns", "one pattern of one head for each head")
        self.patterns, self.heads = flat, len(flat)

    def __repr__(self) -> str:
        return f"PerHead({', '.join(map(str, self.patterns))})"

    @property
    def grid(self) -> tuple[int, ...] | None:
        return next((p.grid for p in self.patterns if p.grid), None)

    @property
    def endless(self) -> bool:
        return all(pattern.endless for pattern in self.patterns)

    @property
    def period(self) -> int:
        return math.gcd(*(pattern.period for pattern in self.patterns))

    def head(self, index: int) -> Pattern:
        return self.patterns[index]

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        raise wrong("pattern", f"{self.heads} heads", "one of them: `head(index)`")

    def future(self, j: Tensor, i: int) -> Tensor:
        return torch.stack([p.future(j, i) for p in self.patterns]).any(0)

    def check(self, m: int) -> None:
        for pattern in self.patterns:
            pattern.check(m)
