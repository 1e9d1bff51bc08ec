"""A router that walks down a tree of ever shorter chunks of keys, and so looks at few of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.mechanism import accumulate_dtype
from regard.patterns.choice import Choice, Rows, best
from regard.routers.base import EVERYTHING, Router, Summary
from regard.routers.blocks import Bound, FirstKey, split_by_sign

TILE = 64
"""Rows whose keys are gathered at a time."""
ScoreAt = Callable[[Tensor, Tensor], Tensor]
"""Scores of chunks from the first block and behind the last one of each."""


class Halves(FirstKey):
    """The past in k chunks; each is halved, the k best halves are kept by the score of their first key, and so on.

    Until every half is one block. A row of several queries scores a key by the most that any of them does. The first
    blocks, the own one and the nearest are taken besides. With ``bound``, no part of the paper, a half is judged by
    what a key between the minima and maxima of all of its keys could score.

    Cost: ``2 k (log₂(m / (k block)) + 1)`` scores for each row.

    Args:
        block: keys in a block. keep: k, blocks that the walk ends with. near: blocks before the own one that are taken.
        size: queries in a row. sinks: first blocks that are taken. bound: judge halves by their bounds.

    Raises:
        ValueError: k below one, near or sinks below zero.
    """

    def __init__(
        self, block: int = 2, keep: int = 256, near: int = 64, size: int = 1, sinks: int = 1, bound: bool = False
    ) -> None:
        if keep < 1 or min(near, sinks) < 0:
            raise wrong("keep, near, sinks", f"{keep}, {near}, {sinks}", "at least 1, 0 and 0 blocks")
        super().__init__(block, keep + near + sinks + 2 + (size - 1) // block, ("own",), size)
        self.keep, self.near, self.sinks, self.bound = keep, near, sinks, bound

    def unlimited(self) -> Router:
        other = super().unlimited()
        assert isinstance(other, Halves)
        other.keep = EVERYTHING
        return other

    def forced_on(self, rows: Rows) -> Tensor:
        last = torch.div(rows.first, rows.block, rounding_mode="floor")[..., None]
        near = (rows.number < last) & (rows.number >= last - self.near)
        first = (rows.number < self.sinks) & (
            rows.number <= torch.div(rows.end, rows.block, rounding_mode="floor")[..., None]
        )
        return super().forced_on(rows) | near | (first if rows.causal else rows.number < self.sinks)

    def summary(self, k: Tensor) -> Summary:
        return Bound(self.block, 4).summary(k) if self.bound else super().summary(k)

    def width(self, head_dim: int) -> int:
        return head_dim * (1 + self.bound)

    def steps(self, blocks: int) -> int:
        """How often chunks of so many blocks are halved."""
        kept = min(self.keep, blocks)
        return math.ceil(math.log2(max(-(-blocks // max(kept, 1)), 1)))

    def flops(self, n: int, m: int, head_dim: int) -> int:
        blocks = -(-m // self.block)
        return 4 * n * min(self.keep, blocks) * (self.steps(blocks) + 1) * self.width(head_dim)

    def walked(self, score_at: ScoreAt, rows: Rows, heads: int, batch: int) -> Tensor:
        """``(b, h, rows, k)`` int64: the blocks that the walk ends with, −1 for none."""
        count = rows.routable().sum(-1)[:, None, :, None].expand(batch, heads, -1, -1)
        kept = min(self.keep, rows.blocks)
        place = torch.arange(kept + 1, device=count.device)
        ends = place * count // max(kept, 1)
        low, high = ends[..., :-1], ends[..., 1:]
        for _ in range(self.steps(rows.blocks)):
            middle = (low + high + 1) // 2
            lows = torch.stack([low, middle], -1).flatten(-2)
            highs = torch.stack([middle, high], -1).flatten(-2)
            scores = score_at(lows.clamp(max=max(rows.blocks - 1, 0)), highs).masked_fill(highs <= lows, -torch.inf)
            chosen = best(scores, kept)
            none = chosen < 0
            low, high = (x.gather(3, chosen.clamp(min=0)).masked_fill(none, 0) for x in (lows, highs))
        return low.masked_fill(high <= low, -1)

    def joined(self, walked: Tensor, rows: Rows) -> Choice:
        """What the walk ends with, and the forced blocks."""
        mask = Choice(walked, rows).mask | self.forced_on(rows)[:, None]
        most = max(int(mask.sum(-1).max()), 1) if mask.numel() else 1
        return Choice(best(torch.where(mask, 0.0, -torch.inf), most), rows)

    def choose(self, scores: Tensor, rows: Rows) -> Choice:
        more = rows.blocks - scores.shape[3]
        scores = torch.nn.functional.pad(scores, (0, more), value=-torch.inf) if more else scores
        walked = self.walked(lambda low, high: scores.gather(3, low), rows, scores.shape[1], len(scores))
        return self.joined(walked, rows)

    @torch.no_grad()
    def forward(self, q: Tensor, k: Tensor, rows: Rows, summary: Summary | None = None) -> Choice:
        return self.joined(self.found(q, self.summary(k) if summary is None else summary, rows), rows)

    def found(self, q: Tensor, summary: Summary, rows: Rows) -> Tensor:
        """``(b, h, rows, k)`` int64: the blocks that the walks of queries end with, −1 for none."""
        keys, wide = summary[0], accumulate_dtype(q.dtype)
        batch, heads = q.shape[:2]
        keys, parts = ranges(keys) if self.bound else keys[:, :, None], []
        for start in range(0, rows.n, TILE * self.size):
            some = slice(start, min(start + TILE * self.size, rows.n))
            mine = rows.at(some)
            more = mine.count * self.size - (some.stop - some.start)
            queries = torch.nn.functional.pad(q[:, :, some].to(wide), (0, 0, 0, more)).unflatten(2, (-1, self.size))
            real = torch.arange(mine.count * self.size, device=q.device).view(-1, self.size, 1) < some.stop - some.start

            def score_at(low: Tensor, high: Tensor, queries: Tensor = queries, real: Tensor = real) -> Tensor:
                asked, of = (
                    (split_by_sign(queries), over(keys, low, high))
                    if self.bound
                    else (queries, picked(keys[:, :, 0], low))
                )
                products = asked @ of.mT.to(wide)  # (b, h, rows, size, 2 k)
                return products.masked_fill(~real, -torch.inf).amax(3)

            parts.append(self.walked(score_at, mine, heads, batch))
        width = min(self.keep, rows.blocks)
        walked = torch.cat(parts, 2) if parts else torch.zeros(batch, heads, 0, width, dtype=torch.int64)
        return walked.to(q.device)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [
            Sample("a query alone", cls(2, 4, 1)),
            Sample("rows of 4", cls(2, 3, 0, 4)),
            Sample("by bounds, three sinks", cls(2, 4, 1, 1, 3, True)),
        ]


def ranges(bounds: Tensor) -> Tensor:
    """``(b, g, levels, blocks, 2 d)``: of 2^level blocks from each on, the maxima of the first half of ``bounds
    (b, g, blocks, 2 d)`` and the minima of the second."""
    high, low = bounds.chunk(2, -1)
    found = [torch.cat([high, -low], -1)]
    while 1 << len(found) <= bounds.shape[2]:
        last, apart = found[-1], 1 << (len(found) - 1)
        found.append(torch.cat([torch.maximum(last[:, :, :-apart], last[:, :, apart:]), last[:, :, -apart:]], 2))
    high, low = torch.stack(found, 2).chunk(2, -1)
    return torch.cat([high, -low], -1)


def over(tables: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``(b, h, rows, x, 2 d)``: maxima and minima of the blocks from ``low`` up to ``high (b, h, rows, x)``."""
    count, blocks = (high - low).clamp(min=1), tables.shape[3]
    level = count.double().log2().floor().long().clamp(max=max(tables.shape[2] - 1, 0))
    flat, ends = tables.flatten(2, 3), (low, low + count - (1 << level))
    a, b = (picked(flat, level * blocks + end.clamp(min=0, max=max(blocks - 1, 0))).chunk(2, -1) for end in ends)
    return torch.cat([torch.maximum(a[0], b[0]), torch.minimum(a[1], b[1])], -1)


def picked(keys: Tensor, index: Tensor) -> Tensor:
    """``(b, h, rows, x, d)``: ``keys (b, g, blocks, d)`` at ``index (b, h, rows, x)``; zeros where there are none."""
    if not keys.shape[2]:
        return keys.new_zeros(*index.shape, keys.shape[3])
    group, flat = index.shape[1] // keys.shape[1], index.clamp(max=keys.shape[2] - 1).flatten(2)
    batch = torch.arange(len(keys), device=keys.device)[:, None, None]
    head = (torch.arange(index.shape[1], device=keys.device) // group)[:, None]
    return keys[batch, head, flat].view(*index.shape, keys.shape[3])
