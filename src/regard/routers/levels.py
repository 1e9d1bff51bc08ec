"""A router that says not only which blocks of keys are seen, but how finely: whole, or runs of keys as their mean."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.mechanism import accumulate_dtype
from regard.patterns.choice import Choice, Rows, best
from regard.routers.base import EVERYTHING, Router, Summary

QUOTAS: Mapping[int, float] = {1: 0.05, 2: 0.15, 4: 0.25, 8: 0.5}
"""Up to which share of the blocks, the best first, keys are seen in runs of so many."""
SAMPLED = 4
"""One of so many tokens of a block is looked at."""
TINY, CLOSE = 1e-8, 1e-6
LEAST = 0.06
"""The share of the blocks that is seen whole at least, where quotas are shares of the mass."""
By = Literal["count", "mass"]


class Levels(Router):
    """Blocks ranked by the largest weight that a sampled query of the row gives a sampled key of the block.

        w_IJ = max_{i ∈ I, j ∈ J} exp(s_ij − max_j' s_ij') / Σ_J' …,   s_ij = q_i · k_j / √d

    i and j are a quarter of the tokens. The best share of blocks is of level 1, seen as they are, at least one; the
    next of level 2, whose keys are seen two by two as their mean, and so on; the rest is skipped. The number of blocks
    of a level is rounded up to a multiple of it. With quotas by ``mass`` they are shares of Σ w instead: a level ends
    one block behind those whose sum is at most its share, and level 1 has 6% of the blocks and one more. With ``alike``
    a block is no coarser than its keys allow: level l takes a mean cosine above ``alike[l]`` of the first and the last
    of each run of l keys. Only bidirectional.

    Args:
        size: queries in a row. block: keys in a block, a multiple of each level. quotas: by level, up to which share of
            the blocks, or of their mass. alike: by level, the least cosine; without it levels are those of the quotas.
            seed: of the sampled places, which are the same in every block. by: what quotas are shares of.

    Raises:
        ValueError: quotas that do not grow up to 1 at most, or are of something else; a block that a level does not
            divide.
    """

    directions = (False,)

    def __init__(
        self,
        size: int = 32,
        block: int = 32,
        quotas: Mapping[int, float] = QUOTAS,
        alike: Mapping[int, float] | None = None,
        seed: int = 0,
        by: By = "count",
    ) -> None:
        super().__init__(block, EVERYTHING, forced=(), size=size)
        shares = list(quotas.values())
        if not shares or shares[0] <= 0 or shares != sorted(shares) or shares[-1] > 1:
            raise wrong("quotas", f"{dict(quotas)}", "shares of the blocks that grow, up to 1 at most")
        if any(level < 1 or block % level for level in quotas):
            raise wrong("block", str(block), f"a multiple of the levels {', '.join(map(str, quotas))}")
        if by not in ("count", "mass"):
            raise wrong("by", repr(by), "count or mass")
        self.quotas, self.alike, self.seed = dict(quotas), dict(alike or {}), seed
        self.by: By = by

    @property
    def looked_at(self) -> tuple[int, int]:
        """Queries of a row and keys of a block that are sampled."""
        return max(self.size // SAMPLED, 1), max(self.block // SAMPLED, 1)

    def places(self, size: int, count: int, offset: int) -> Tensor:
        """``(count,)``: the places that are sampled, of ``size``."""
        generator = torch.Generator().manual_seed(self.seed * 2 + offset)
        return torch.randperm(size, generator=generator)[:count].sort().values

    def sampled(self, x: Tensor, size: int, count: int, offset: int) -> Tensor:
        """``(b, h, blocks, count, d)`` of ``x (b, h, n, d)``, the last token standing for those behind it."""
        places = torch.arange(0, x.shape[2], size)[:, None] + self.places(size, count, offset)
        return x[:, :, places.clamp(max=max(x.shape[2] - 1, 0)).to(x.device)]

    def summary(self, k: Tensor) -> Summary:
        """Sampled keys, and the coarsest level that the likeness of keys allows."""
        keys = self.sampled(k, self.block, self.looked_at[1], 1).to(accumulate_dtype(k.dtype))
        return keys.flatten(3), self.coarsest(k)[..., None]

    def coarsest(self, k: Tensor) -> Tensor:
        """``(b, g, blocks)``: the highest level whose runs are alike, 1 for none; the highest of all without limits."""
        wide = k.to(accumulate_dtype(k.dtype))
        blocks = F.pad(wide, (0, 0, 0, -k.shape[2] % self.block)).unflatten(2, (-1, self.block))
        if not self.alike:
            return blocks.new_full(blocks.shape[:3], max(self.quotas))
        found = blocks.new_ones(blocks.shape[:3])
        for level, least in sorted(self.alike.items()):
            ends = F.cosine_similarity(blocks[..., ::level, :], blocks[..., level - 1 :: level, :], dim=-1)
            found = torch.where(ends.mean(-1) > least, level, found)
        return found

    def width(self, head_dim: int) -> int:
        return self.looked_at[1] * head_dim + 1

    def flops(self, n: int, m: int, head_dim: int) -> int:
        rows, keys = self.looked_at
        return 2 * -(-n // self.size) * rows * -(-m // self.block) * keys * head_dim

    def scores(self, q: Tensor, summary: Summary, rows: Rows) -> Tensor:
        h, d = q.shape[1], q.shape[3]
        if not q.numel() or not summary[0].shape[2]:
            return q.new_zeros(len(q), h, rows.count, summary[0].shape[2])
        queries = self.sampled(q, self.size, self.looked_at[0], 0)
        keys = summary[0].unflatten(3, (-1, d)).repeat_interleave(h // summary[0].shape[1], 1)
        every = queries.flatten(2, 3) @ keys.flatten(2, 3).mT.to(q.dtype) * d**-0.5
        paid = (every - every.amax(-1, keepdim=True)).unflatten(3, keys.shape[2:4]).amax(-1).exp()
        paid = paid.unflatten(2, queries.shape[2:4]).amax(3)
        return paid / paid.sum(-1, keepdim=True)

    def ends(self, blocks: int) -> dict[int, tuple[int, int]]:
        """By level, the first and behind the last of the ranks that it is given to, of so many blocks."""
        found, start = {}, 0
        for level, share in self.quotas.items():
            stop = min(blocks, max(int(blocks * share + TINY), not found))
            count = -(-max(stop - start, 0) // level) * level
            if start + count >= blocks:
                count = (blocks - start) // level * level if level > 1 else blocks - start
            found[level] = (start, start + count)
            start += count
        return found

    def ends_by_mass(self, paid: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """The same for each row of ``paid (b, h, rows, blocks)``, descending: ``(b, h, rows, 1)`` each."""
        blocks, total = paid.shape[3], paid.cumsum(-1)
        share, found = total / total[..., -1:], {}
        start = torch.zeros_like(paid[..., :1], dtype=torch.int64)
        for level, most in self.quotas.items():
            within = (share <= most + CLOSE).sum(-1, keepdim=True)
            stop = torch.where(within > 0, within + 1, start)
            if level > 1:
                count = -(-(stop - start).clamp(min=0) // level) * level
                stop = start + torch.where(start + count >= blocks, (blocks - start) // level * level, count)
            else:
                stop = stop.clamp(max=blocks).maximum(start).clamp(min=min(blocks, int(blocks * LEAST) + 1))
            found[level] = (start, stop)
            start = stop
        return found

    def ranked(self, scores: Tensor, rows: Rows) -> Tensor:
        """``(b, h, rows, blocks)`` int64: the level of each block by the quotas, 0 for none."""
        paid, order = scores.sort(dim=-1, descending=True, stable=True)
        levels, place = torch.zeros_like(order), torch.arange(scores.shape[3], device=scores.device)
        ends = self.ends(len(place)) if self.by == "count" or not len(place) else self.ends_by_mass(paid.clamp(min=0))
        for level, (start, stop) in ends.items():
            levels = levels.masked_fill((place >= start) & (place < stop), level)
        return torch.zeros_like(order).scatter_(3, order, levels)

    @torch.no_grad()
    def levels(self, q: Tensor, k: Tensor, rows: Rows) -> Tensor:
        """``(b, h, rows, blocks)`` int64: how many keys are seen as one, 0 for blocks that are not seen."""
        summary = self.summary(k)
        levels = self.ranked(self.scores(q.to(accumulate_dtype(q.dtype)), summary, rows), rows)
        most = summary[1][..., 0].long().repeat_interleave(q.shape[1] // k.shape[1], 1)
        return torch.minimum(levels, most[:, :, None])

    def choose(self, scores: Tensor, rows: Rows) -> Choice:
        more = rows.blocks - scores.shape[3]
        scores = F.pad(scores, (0, more), value=-torch.inf) if more else scores
        return chosen_at(self.ranked(scores, rows) > 0, rows)

    def unlimited(self) -> Router:
        other = copy.deepcopy(self)
        other.quotas, other.alike, other.by = {1: 1.0}, {}, "count"
        return other

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [
            Sample("three levels", cls(4, 4, {1: 0.2, 2: 0.5, 4: 0.9})),
            Sample("where keys are alike", cls(5, 6, {1: 0.1, 3: 0.6}, {3: 0.1})),
            Sample("shares of the mass", cls(6, 4, {1: 0.2, 2: 0.5, 4: 0.7}, by="mass")),
        ]


def chosen_at(mask: Tensor, rows: Rows) -> Choice:
    """The choice of the blocks in ``mask (b, h, rows, blocks)``."""
    most = max(int(mask.sum(-1).max()), 1) if mask.numel() else 1
    return Choice(best(torch.where(mask, 0.0, -torch.inf), most), rows)


def most_at(router: Levels, level: int, m: int) -> int:
    """Blocks of m keys that are of a level at most."""
    blocks = math.ceil(m / router.block)
    if router.by == "mass" or router.forced or (router.alike and level < max(router.quotas)):
        return blocks
    start, stop = router.ends(blocks)[level]
    return stop - start
