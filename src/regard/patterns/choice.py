"""Choices at run time: which blocks of keys each row of queries attends to, and where these rows stand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from regard.core.errors import wrong

FEW = 8
"""As many blocks are found one by one on a GPU."""


@dataclass(frozen=True)
class Rows:
    """Queries that choose, alone or a few together, and the blocks of keys that they choose from.

    Args:
        here: ``(batch or 1, n)`` int64, the position of each query, ascending; negative before the first key.
        m: keys, at positions from 0. block: keys in a block, the last being shorter. size: queries in a row, the last
            being shorter. causal: whether a query sees no later keys.
    """

    here: Tensor
    m: int
    block: int
    size: int = 1
    causal: bool = True

    def __post_init__(self):
        if min(self.block, self.size) < 1:
            raise wrong("block, size", f"{self.block}, {self.size}", "at least 1 each")

    @classmethod
    def last(cls, n: int, m: int, block: int, size: int, causal: bool, device: torch.device | str = "cpu") -> Rows:
        """Those of the last ``n`` of ``m`` tokens."""
        return cls(torch.arange(m - n, m, device=device)[None], m, block, size, causal)

    @property
    def n(self) -> int:
        return self.here.shape[1]

    @property
    def count(self) -> int:
        """How many rows there are."""
        return -(-self.n // self.size)

    @property
    def blocks(self) -> int:
        """How many blocks of keys there are."""
        return -(-self.m // self.block)

    @property
    def first(self) -> Tensor:
        """``(batch or 1, rows)``: the position of each row's first query."""
        return self.here[:, :: self.size]

    @property
    def end(self) -> Tensor:
        """``(batch or 1, rows)``: the position of each row's last query."""
        if self.size == 1:
            return self.here
        places = torch.arange(self.size - 1, self.count * self.size, self.size, device=self.here.device)
        return self.here[:, places.clamp(max=self.n - 1)] if self.n else self.first

    @cached_property
    def number(self) -> Tensor:
        """``(blocks,)``: 0, 1, 2 …"""
        return torch.arange(self.blocks, device=self.here.device)

    @cached_property
    def lowest(self) -> Tensor:
        """``(batch or 1, rows, 1)``: the block of the row's first query; negative before the first key."""
        return torch.div(self.first, self.block, rounding_mode="floor")[..., None]

    def own(self) -> Tensor:
        """``(batch or 1, rows, blocks)`` bool: blocks that hold a query of the row."""
        if self.size == 1:
            return self.number == self.lowest
        highest = torch.div(self.end, self.block, rounding_mode="floor")[..., None]
        return (self.number >= self.lowest) & (self.number <= highest)

    def previous(self) -> Tensor:
        """``(batch or 1, rows, blocks)`` bool: the block before that of the row's first query."""
        return self.number == self.lowest - 1

    def leading(self) -> Tensor:
        """``(batch or 1, rows, blocks)`` bool: the first block, where the row sees any of it."""
        return (self.number == 0) & ((self.end >= 0)[..., None] | (not self.causal))

    def routable(self) -> Tensor:
        """``(batch or 1, rows, blocks)`` bool: blocks to choose from; causal, those complete and wholly past."""
        if not self.causal:
            return torch.ones(1, self.count, self.blocks, dtype=torch.bool, device=self.here.device)
        return self.number < self.lowest

    def at(self, rows: slice) -> Rows:
        """Some of the queries, from and up to whole rows."""
        return replace(self, here=self.here[:, rows])


@dataclass(frozen=True)
class Choice:
    """The blocks that each row attends to; inside of them a query sees all keys, or those up to itself.

    Args:
        index: ``(batch, heads, rows, budget)`` int64, ascending numbers of blocks, those that are none (−1) behind.
        rows: where the rows stand.
    """

    index: Tensor
    rows: Rows

    def __post_init__(self):
        if self.index.dim() != 4 or self.index.shape[2] != self.rows.count:
            raise wrong("index", f"shape {tuple(self.index.shape)}", f"(batch, heads, {self.rows.count}, budget)")

    @property
    def mask(self) -> Tensor:
        """``(batch, heads, rows, blocks)`` bool: the blocks chosen."""
        chosen = torch.zeros(*self.index.shape[:3], self.rows.blocks + 1, dtype=torch.bool, device=self.index.device)
        chosen.scatter_(3, self.index.masked_fill(self.index < 0, self.rows.blocks), True)
        return chosen[..., :-1]

    def spread(self, rows: slice | None = None) -> Tensor:
        """``(batch, heads, n, m)`` bool, or some queries of it: every pair that is seen."""
        start, stop, _ = (rows or slice(0, self.rows.n)).indices(self.rows.n)
        queries = torch.arange(start, stop, device=self.index.device)
        keys = torch.arange(self.rows.m, device=self.index.device)
        seen = self.mask[:, :, queries // self.rows.size][..., keys // self.rows.block]
        return seen & (keys <= self.rows.here[:, None, start:stop, None]) if self.rows.causal else seen

    def at(self, rows: slice) -> Choice:
        """That of some queries, from and up to whole rows."""
        size = self.rows.size
        return Choice(self.index[:, :, rows.start // size : -(-rows.stop // size)], self.rows.at(rows))


def best(scores: Tensor, count: int) -> Tensor:
    """``(…, count)`` int64: where the largest of ``scores (…, x)`` are, ascending, of equal ones the first; −1 behind
    where fewer than ``count`` are above −∞. NaN is the largest, so that it shows in what is computed."""
    size = scores.shape[-1]
    if not count or not scores.numel():
        return torch.full((*scores.shape[:-1], count), -1, dtype=torch.int64, device=scores.device)
    taken = min(count, size)
    values, indices = largest(scores, min(taken + 1, size))
    least, best_values = values[..., taken - 1 : taken], values[..., :taken]
    found = indices[..., :taken].masked_fill(best_values == -torch.inf, size)
    tied = (values[..., taken:] == least) & (least > -torch.inf)
    if bool(tied.any()):
        tied = tied[..., 0]
        found[tied] = first_of_equal(scores[tied], least[tied], taken)
    found = found.sort(-1).values
    if count > taken:
        found = torch.nn.functional.pad(found, (0, count - taken), value=size)
    return found.masked_fill(found == size, -1)


def first_of_equal(scores: Tensor, least: Tensor, count: int) -> Tensor:
    """``(rows, count)`` where scores ``(rows, x)`` above ``least (rows, 1)`` are, and the first that equal it."""
    above, equal = ~(scores <= least), scores == least
    left = count - above.sum(-1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(-1) <= left))
    number = torch.arange(scores.shape[-1], device=scores.device)
    return torch.where(chosen, number, scores.shape[-1]).topk(count, dim=-1, largest=False).values


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of ``scores (…, x)``, descending, and where they are; of equal ones any."""
    if scores.device.type == "cpu" or count > FEW:
        return scores.topk(count, dim=-1)
    left, found = scores.clone(), []
    for _ in range(count):  # on a GPU each is one pass, where selecting many from short rows takes far longer
        found.append(left.max(-1, keepdim=True))
        left.scatter_(-1, found[-1].indices, -torch.inf)
    return torch.cat([x.values for x in found], -1), torch.cat([x.indices for x in found], -1)
