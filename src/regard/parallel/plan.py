"""Plans: which rank holds which tokens of a sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from regard.core.errors import wrong

Range = tuple[int, int]
"""Tokens from the first to the one behind the last."""


@dataclass(frozen=True)
class Plan:
    """Which rank holds which tokens: ranges of any sizes, which together are the whole sequence, each token once.

    A rank holds its ranges one behind the other, in the order in which they stand here; it may hold none.

    Args:
        shards: for each rank its ranges ``(first, behind the last)``. borders: first tokens of the packed documents,
            the first one's 0 included; ``(0,)`` for one document. everywhere: every rank holds all tokens alike, as
            queries of decoding are; each of its shards is then the whole.

    Raises:
        ValueError: tokens that nobody holds or two do, or borders that do not rise from 0 to below the length.
    """

    shards: tuple[tuple[Range, ...], ...]
    borders: tuple[int, ...] = (0,)
    everywhere: bool = False

    def __post_init__(self) -> None:
        if not self.shards:
            raise wrong("shards", "no ranks", "the ranges of at least one rank")
        for parts in self.shards if self.everywhere else [sum(self.shards, ())]:
            reached = 0
            for first, last in sorted(parts):
                if first != reached or last <= first:
                    came = f"the range {(first, last)} where token {reached} is next"
                    raise wrong("shards", came, "ranges that hold every token once, none of them empty")
                reached = last
        rising = all(a < b for a, b in pairwise(self.borders))
        if not self.borders or self.borders[0] != 0 or not rising or self.borders[-1] >= max(self.length, 1):
            raise wrong(
                "borders", str(self.borders), f"first tokens of documents, rising from 0 to below {self.length}"
            )

    @classmethod
    def sized(cls, sizes: Sequence[int], borders: Sequence[int] = (0,)) -> Plan:
        """Rank after rank the next ``sizes[rank]`` tokens; 0 for none."""
        starts = [sum(sizes[:rank]) for rank in range(len(sizes) + 1)]
        return cls(tuple(((a, b),) if b > a else () for a, b in pairwise(starts)), tuple(borders))

    @classmethod
    def even(cls, n: int, ranks: int, borders: Sequence[int] = (0,)) -> Plan:
        """Of ``n`` tokens each rank holds a stretch, of sizes that differ by one at most."""
        return cls.sized(shares(n, ranks), borders)

    @classmethod
    def zigzag(cls, n: int, ranks: int, borders: Sequence[int] = (0,)) -> Plan:
        """Of 2 P stretches rank r holds the r-th from the start and the r-th from the end, so that all see as much."""
        cut = cls.even(n, 2 * ranks).shards
        return cls(tuple(cut[r] + cut[2 * ranks - 1 - r] for r in range(ranks)), tuple(borders))

    @classmethod
    def replicated(cls, n: int, ranks: int) -> Plan:
        """All ``n`` tokens on every rank."""
        return cls((((0, n),) if n else (),) * ranks, everywhere=True)

    @property
    def ranks(self) -> int:
        """P."""
        return len(self.shards)

    @property
    def length(self) -> int:
        """How many tokens there are in all."""
        return max((last for parts in self.shards for _, last in parts), default=0)

    def size(self, rank: int) -> int:
        """How many tokens a rank holds."""
        return sum(last - first for first, last in self.shards[rank])

    @property
    def sizes(self) -> list[int]:
        """How many tokens each rank holds."""
        return [self.size(rank) for rank in range(self.ranks)]

    def tokens(self, rank: int) -> Tensor:
        """``(n_r,)`` int64: which tokens a rank holds, in its order."""
        parts = [torch.arange(first, last) for first, last in self.shards[rank]]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def positions(self, rank: int) -> Tensor:
        """``(n_r,)`` int64: how many tokens of its document stand before each one that the rank holds."""
        tokens, borders = self.tokens(rank), torch.tensor(self.borders)
        return tokens - borders[torch.searchsorted(borders, tokens, right=True) - 1]

    def split(self, x: Tensor, axis: int, rank: int) -> Tensor:
        """A rank's part of a tensor of all tokens."""
        if x.shape[axis] != self.length:
            raise wrong("x", f"{x.shape[axis]} tokens along axis {axis}", f"the {self.length} of the plan")
        return x.index_select(axis, self.tokens(rank).to(x.device))

    def join(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """The tensor of all tokens, from every rank's part of it; `split` undone."""
        if self.everywhere:
            return parts[0]
        order = torch.cat([self.tokens(rank) for rank in range(self.ranks)]).argsort()
        return torch.cat(list(parts), axis).index_select(axis, order.to(parts[0].device))

    def grown(self, sizes: Sequence[int]) -> Plan:
        """The plan once each rank has taken so many of the tokens that follow, the first rank the first of them."""
        if len(sizes) != self.ranks:
            raise wrong("sizes", f"{len(sizes)} numbers", f"one for each of the {self.ranks} ranks")
        shards, reached = [], self.length
        for parts, size in zip(self.shards, sizes, strict=True):
            shards.append(joined([*parts, (reached, reached + size)]) if size else parts)
            reached += size
        return replace(self, shards=tuple(shards))

    def fill(self, new: int) -> list[int]:
        """How many of ``new`` tokens each rank should take, so that the fullest one holds as few as can be."""
        held = self.sizes
        taken = [0] * self.ranks
        level = held
        while new:
            least = min(level)
            low = [rank for rank in range(self.ranks) if level[rank] == least]
            above = min((size for size in level if size > least), default=least + new)
            room = min((above - least) * len(low), new)
            for rank, more in zip(low, shares(room, len(low)), strict=True):
                taken[rank] += more
            level = [size + more for size, more in zip(held, taken, strict=True)]
            new -= room
        return taken

    def document(self, token: int) -> int:
        """The number of the packed document that a token belongs to."""
        return sum(1 for border in self.borders if border <= token) - 1

    def pieces(self, rank: int) -> list[tuple[int, int, Range]]:
        """``(document, place in the rank's own order, range)`` of what a rank holds, cut at the borders."""
        found, place, ends = [], 0, (*self.borders[1:], self.length)
        for first, last in self.shards[rank]:
            for document, (begin, end) in enumerate(zip(self.borders, ends, strict=True)):
                start, stop = max(first, begin), min(last, end)
                if stop > start:
                    found.append((document, place + start - first, (start, stop)))
            place += last - first
        return found


def shares(n: int, parts: int) -> list[int]:
    """``n`` in as many parts, the first ones larger by one where it does not divide."""
    return [n // parts + (part < n % parts) for part in range(parts)]


def joined(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Ranges, neighbours that touch made one."""
    found: list[Range] = []
    for first, last in ranges:
        if found and found[-1][1] == first:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return tuple(found)
