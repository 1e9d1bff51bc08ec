"""Patterns on a line of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.patterns.base import Bounds, Pattern, Region

WRITTEN = 64
"""So many parts of tokens are written out."""


def at_least(name: str, value: int, least: int, why: str = "") -> None:
    """Raises a ValueError if ``value`` is below ``least``."""
    if value < least:
        raise wrong(name, str(value), f"at least {least}{why}")


def apart(queries: Region, keys: Region, period: int) -> Tensor:
    """``(query blocks, key blocks)`` bool: whether two blocks are of one residue class each, and not of the same."""
    a, b = queries.residue(period)[:, None], keys.residue(period)
    return (a >= 0) & (b >= 0) & (a != b)


class Offsets(Pattern):
    """The base of patterns that know only how far back a key lies: i − j."""

    endless = True

    def offset(self, back: Tensor) -> Tensor:
        """bool, whether a key ``back = i − j`` tokens back may be seen."""
        raise NotImplementedError

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        return self.offset(i - j)

    def rows(self, first: int, last: int, m: int, device: torch.device | str = "cpu") -> Tensor:
        if type(self).visible is not Offsets.visible or last <= first:
            return super().rows(first, last, m, device)
        ahead = self.offset(torch.arange(first + 1 - m, last, device=device).flip(0))
        return ahead.unfold(0, m, 1).flip(0)

    def bounds(self, queries: Region, keys: Region, m: int) -> Bounds:
        first, last = queries.low[:, None] - keys.high, queries.high[:, None] - keys.low
        start = int(first.min()) if first.numel() else 0
        table = self.offset(torch.arange(start, int(last.max()) + 1 if last.numel() else 0, device=first.device))
        before = torch.nn.functional.pad(table.cumsum(0), (1, 0))
        count = before[last - start + 1] - before[first - start]
        some, every = count > 0, count == last - first + 1
        if queries.run and keys.run:
            return Bounds.exactly(some, every)
        return Bounds.at_most(some & ~apart(queries, keys, self.period), every)

    def pairs(self, n: int, m: int | None = None) -> int:
        """Σ over offsets of the pairs that are so far apart: a closed form."""
        m = n if m is None else m
        back = torch.arange(1 - n, m) if n and m else torch.zeros(0, dtype=torch.int64)
        # Queries stand at m − n … m − 1; the pairs with i − j = back have max(0, m − n, back) ≤ i < min(m, m + back).
        found = (back.clamp(max=0) + m - back.clamp(min=max(m - n, 0))).clamp(min=0)
        return int(found[self.offset(back)].sum())


class OneSided(Pattern):
    """The base of patterns that look at one of the two tokens alone."""

    endless = True

    side: str = "key"

    def chosen(self, tokens: Tensor) -> Tensor:
        """bool, which tokens."""
        raise NotImplementedError

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        one, other = (j, i) if self.side == "key" else (i, j)
        return self.chosen(one) & torch.ones_like(other, dtype=torch.bool)

    def bounds(self, queries: Region, keys: Region, m: int) -> Bounds:
        mine = keys if self.side == "key" else queries
        found = self.chosen(mine.tokens)
        some, every = (x[None] if self.side == "key" else x[:, None] for x in (found.any(1), found.all(1)))
        shape = (len(queries.tokens), len(keys.tokens))
        return Bounds.exactly(some.expand(shape), every.expand(shape))


class Groups(Pattern):
    """The base of patterns that show the tokens of the query's own group."""

    ordered = True
    """Whether later tokens never have a lower group, and no group is left out."""

    def group(self, tokens: Tensor, m: int) -> Tensor:
        """int64, the group of each token."""
        raise NotImplementedError

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        return self.group(i, m) == self.group(j, m)

    def bounds(self, queries: Region, keys: Region, m: int) -> Bounds:
        a, b = self.group(queries.tokens, m), self.group(keys.tokens, m)
        a_low, a_high, b_low, b_high = a.amin(1)[:, None], a.amax(1)[:, None], b.amin(1), b.amax(1)
        some, single = (a_low <= b_high) & (b_low <= a_high), (a_low == a_high) & (b_low == b_high)
        every = some & single
        if self.ordered and queries.run and keys.run:
            return Bounds.exactly(some, every)
        return Bounds(every, some, every, every)


@dataclass(frozen=True)
class Causal(Offsets):
    """No later keys: ``j ≤ i``."""

    def offset(self, back: Tensor) -> Tensor:
        return back >= 0


@dataclass(frozen=True)
class Window(Offsets):
    """The keys nearer to the query than ``size``: ``|i − j| < size``.

    With `Causal`, that is the query itself and the ``size − 1`` tokens before it; else as many after it too.

    Raises:
        ValueError: ``size`` is below one.
    """

    size: int

    def __post_init__(self) -> None:
        at_least("size", self.size, 1, ": a token sees itself")

    def offset(self, back: Tensor) -> Tensor:
        return back.abs() < self.size

    def future(self, j: Tensor, i: int) -> Tensor:
        return i - j < self.size


@dataclass(frozen=True)
class Trailing(Pattern):
    """The causal neighbourhood on a line of any length: what `Neighborhood` shows on a causal axis of whole groups.

        ⌊j / δ⌋ > leader − w,   j ≤ i,   j ≡ i mod δ,   leader = the last of i's group of s in its residue class

    A group at the end counts as whole, so that no row depends on what follows it.

    Args:
        window: w. stride: s, at most w. dilation: δ.
    """

    endless = True

    window: int
    stride: int = 1
    dilation: int = 1

    def __post_init__(self) -> None:
        for name in ("window", "stride", "dilation"):
            at_least(name, getattr(self, name), 1)
        if self.stride > self.window:
            raise wrong("stride", str(self.stride), f"at most the window, {self.window}")

    @property
    def period(self) -> int:
        return self.dilation

    def first(self, i: Tensor) -> Tensor:
        """The first key that a query sees, were all of the text there."""
        place = i // self.dilation
        return (place // self.stride * self.stride + self.stride - self.window) * self.dilation + i % self.dilation

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        return (self.first(i) <= j) & (j <= i) & ((i - j) % self.dilation == 0)

    def bounds(self, queries: Region, keys: Region, m: int) -> Bounds:
        first, low, high = self.first(queries.tokens), keys.low, keys.high
        some = (first.amin(1)[:, None] <= high) & (low <= queries.high[:, None])
        every = (first.amax(1)[:, None] <= low) & (high <= queries.low[:, None])
        if self.dilation == 1 and queries.run and keys.run:
            return Bounds.exactly(some, every)
        some = some & ~apart(queries, keys, self.dilation)
        return Bounds.at_most(some, every if self.dilation == 1 else torch.zeros_like(every))

    def future(self, j: Tensor, i: int) -> Tensor:
        return i - j < self.window * self.dilation


@dataclass(frozen=True)
class Dilated(Offsets):
    """Every ``dilation``-th key, ``size`` of them on each side, the query counted: ``|i − j| < size · dilation``.

    Raises:
        ValueError: a number below one.
    """

    size: int
    dilation: int

    def __post_init__(self) -> None:
        at_least("size", self.size, 1)
        at_least("dilation", self.dilation, 1)

    @property
    def period(self) -> int:
        return self.dilation

    def offset(self, back: Tensor) -> Tensor:
        return (back.abs() < self.size * self.dilation) & (back % self.dilation == 0)

    def future(self, j: Tensor, i: int) -> Tensor:
        return i - j < self.size * self.dilation


@dataclass(frozen=True)
class Strided(Offsets):
    """Every ``stride``-th key, counted from the query: ``(i − j) mod stride = 0``."""

    stride: int

    def __post_init__(self) -> None:
        at_least("stride", self.stride, 1)

    @property
    def period(self) -> int:
        return self.stride

    def offset(self, back: Tensor) -> Tensor:
        return back % self.stride == 0

    def bounds(self, queries: Region, keys: Region, m: int) -> Bounds:
        a, b = queries.residue(self.stride)[:, None], keys.residue(self.stride)
        if bool((a >= 0).all() and (b >= 0).all()):
            return Bounds.exactly(a == b, a == b)
        return super().bounds(queries, keys, m)


@dataclass(frozen=True)
class Power(Offsets):
    """The keys 1, 2, 4, 8 … tokens back; in blocks of ``block``, those 1, 2, 4, 8 … blocks back, and the own one.

    ⌊i / block⌋ − ⌊j / block⌋ ∈ {0, 1, 2, 4, 8, …}
    """

    block: int = 1

    def __post_init__(self) -> None:
        at_least("block", self.block, 1)

    def offset(self, back: Tensor) -> Tensor:
        return (back >= 0) & (back & (back - 1) == 0)

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        return self.offset(i // self.block - j // self.block)

    def bounds(self, queries: Region, keys: Region, m: int) -> Bounds:
        a, b = (Region(region.tokens // self.block, region.run) for region in (queries, keys))
        return super().bounds(a, b, m)

    def pairs(self, n: int, m: int | None = None) -> int:
        return super().pairs(n, m) if self.block == 1 else Pattern.pairs(self, n, m)


@dataclass(frozen=True)
class Sinks(OneSided):
    """The first ``count`` tokens: ``j < count``.

    Raises:
        ValueError: ``count`` is negative.
    """

    count: int

    def __post_init__(self) -> None:
        at_least("count", self.count, 0)

    def chosen(self, tokens: Tensor) -> Tensor:
        return tokens < self.count

    def future(self, j: Tensor, i: int) -> Tensor:
        return j < self.count


class Listed(OneSided):
    """The base of patterns of a list of tokens."""

    def __init__(self, *tokens: int | Sequence[int]) -> None:
        flat = [t for part in tokens for t in ([part] if isinstance(part, int) else part)]
        if any(t < 0 for t in flat):
            raise wrong("tokens", str(min(flat)), "positions of 0 or more")
        self.tokens = tuple(sorted(set(flat)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(str, self.tokens))})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.tokens == self.tokens  # pyright: ignore

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.tokens))

    def chosen(self, tokens: Tensor) -> Tensor:
        return torch.isin(tokens, torch.tensor(self.tokens, dtype=tokens.dtype, device=tokens.device))


class GlobalKeys(Listed):
    """Some keys, seen by all: the columns of tokens of global attention."""

    def future(self, j: Tensor, i: int) -> Tensor:
        return self.chosen(j)


class GlobalQueries(Listed):
    """Some queries, which see all: the rows of tokens of global attention."""

    side = "query"

    def future(self, j: Tensor, i: int) -> Tensor:
        return torch.full_like(j, bool(self.tokens) and self.tokens[-1] >= i, dtype=torch.bool)


def Global(*tokens: int) -> Pattern:  # noqa: N802  it reads as a pattern
    """Tokens that see all and are seen by all."""
    return GlobalKeys(*tokens) | GlobalQueries(*tokens)


@dataclass(frozen=True)
class Blocks(Groups):
    """The query's own block of ``size`` tokens, the first of which begins ``shift`` tokens early."""

    endless = True

    size: int
    shift: int = 0

    def __post_init__(self) -> None:
        at_least("size", self.size, 1)
        at_least("shift", self.shift, 0)

    def group(self, tokens: Tensor, m: int) -> Tensor:
        return (tokens + self.shift) // self.size

    def future(self, j: Tensor, i: int) -> Tensor:
        return self.group(j, 0) >= (i + self.shift) // self.size


@dataclass(frozen=True)
class Before(Pattern):
    """Whole blocks before the query's own: ``⌊j / size⌋ < ⌊i / size⌋``."""

    endless = True

    size: int

    def __post_init__(self) -> None:
        at_least("size", self.size, 1)

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        return j // self.size < i // self.size

    def bounds(self, queries: Region, keys: Region, m: int) -> Bounds:
        a, b = queries.tokens // self.size, keys.tokens // self.size
        return Bounds.exactly(b.amin(1) < a.amax(1)[:, None], b.amax(1) < a.amin(1)[:, None])


class Segments(Groups):
    """The query's own segment of a text: segments of the given ``lengths``, one after another."""

    def __init__(self, *lengths: int | Sequence[int]) -> None:
        flat = [n for part in lengths for n in ([part] if isinstance(part, int) else part)]
        if not flat or min(flat) < 1:
            raise wrong("lengths", str(flat), "at least one length, each 1 or more")
        self.lengths = tuple(flat)
        self.ends = torch.tensor(flat).cumsum(0)

    def __repr__(self) -> str:
        return f"Segments({', '.join(map(str, self.lengths))})"

    def check(self, m: int) -> None:
        if m != sum(self.lengths):
            raise wrong("lengths", f"{sum(self.lengths)} tokens in segments", f"the {m} tokens")

    def group(self, tokens: Tensor, m: int) -> Tensor:
        return torch.bucketize(tokens, self.ends.to(tokens.device), right=True)


class Parts(Groups):
    """The tokens of the query's own part, wherever they stand.

    Args:
        ids: the part of each token.
    """

    ordered = False

    def __init__(self, ids: Tensor | Sequence[int]) -> None:
        self.ids = torch.as_tensor(ids, dtype=torch.int64)
        if self.ids.dim() != 1 or not len(self.ids):
            raise wrong("ids", f"shape {tuple(self.ids.shape)}", "one part for each token")

    def __repr__(self) -> str:
        ids = self.ids.tolist()
        return f"Parts({ids})" if len(ids) <= WRITTEN else f"Parts({len(ids)} tokens in {len(set(ids))})"

    def check(self, m: int) -> None:
        if m != len(self.ids):
            raise wrong("ids", f"parts of {len(self.ids)} tokens", f"of the {m} tokens")

    def group(self, tokens: Tensor, m: int) -> Tensor:
        return self.ids.to(tokens.device)[tokens]


@dataclass(frozen=True)
class Random(Pattern):
    """Blocks of keys drawn for each block of queries with probability ``share``, always the same for one ``seed``."""

    endless = True

    share: float
    block: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("block", self.block, 1)
        if not 0 <= self.share <= 1:
            raise wrong("share", str(self.share), "0 to 1")

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        mixed = (i // self.block) * 0x9E3779B1 + (j // self.block) * 0x85EBCA77 + self.seed * 0xC2B2AE3D
        for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
            mixed = ((mixed ^ (mixed >> shift)) * factor) & 0x7FFFFFFF
        return (mixed ^ (mixed >> 15)) < self.share * 0x7FFFFFFF
