"""Levels of blocks, causal or not, by sums along the antidiagonals of the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.mechanism import masked_softmax
from regard.patterns.choice import Rows
from regard.routers.base import Summary, blocked, products
from regard.routers.levels import QUOTAS, By, Levels


class DiagonalLevels(Levels):
    """Blocks ranked by the weights of squares of tokens, each judged by one antidiagonal of its scores.

        w_IJ = Σ_{a ∈ I, b ∈ J} p_ab,   p_a = softmax over b in sight of Σ_s q_{aS + S − 1 − s} · k_{bS + s} / (S √d)

    a and b count squares of S tokens. Of the blocks in reach of a row, r of them, those of rank r c_(l − 1) to r c_l,
    rounded down, are of level l; by ``mass``, those at which the sum of the w of rank up to theirs is a share of all
    above c_(l − 1), up to c_l. The own blocks and the first are of level 1. c are the ``quotas``.

    Args:
        block: queries in a row and keys in a block. quotas, alike, by: as of `Levels`. stride: S, which divides it.

    Raises:
        ValueError: as of `Levels`; a stride that does not divide the block.
    """

    directions = (True, False)
    past = False

    def __init__(
        self,
        block: int = 128,
        quotas: Mapping[int, float] = QUOTAS,
        alike: Mapping[int, float] | None = None,
        by: By = "count",
        stride: int = 16,
    ) -> None:
        super().__init__(block, block, quotas, alike, by=by)
        if stride < 1 or block % stride:
            raise wrong("stride", str(stride), f"a divisor of the {block} keys of a block")
        self.stride, self.forced = stride, ("own", "first")

    def summary(self, k: Tensor) -> Summary:
        """The keys themselves, and the coarsest level that their likeness allows."""
        return blocked(k, self.block).flatten(3), self.coarsest(k)[..., None]

    def width(self, head_dim: int) -> int:
        return self.block * head_dim + 1

    def flops(self, n: int, m: int, head_dim: int) -> int:
        return 2 * -(-n // self.stride) * -(-m // self.block) * self.block * head_dim

    def scores(self, q: Tensor, summary: Summary, rows: Rows) -> Tensor:
        stride, d, each = self.stride, q.shape[3], self.block // self.stride
        if not q.numel() or not summary[0].shape[2]:
            return q.new_zeros(len(q), q.shape[1], rows.count, summary[0].shape[2])
        keys = summary[0].unflatten(3, (-1, stride * d)).flatten(2, 3)
        queries = F.pad(q, (0, 0, 0, -rows.n % stride)).unflatten(2, (-1, stride)).flip(3).flatten(3)
        start = torch.arange(keys.shape[2], device=q.device) * stride
        seen = start < rows.m
        if rows.causal:
            seen = seen & (start <= rows.here[:, None, ::stride, None])
        every = products(queries, keys) * (d**-0.5 / stride)
        paid = masked_softmax(every, seen.expand_as(every)).unflatten(3, (-1, each)).sum(4)
        return F.pad(paid, (0, 0, 0, -paid.shape[2] % each)).unflatten(2, (-1, each)).sum(3)

    def ranked(self, scores: Tensor, rows: Rows) -> Tensor:
        reach, sure = self.reach(rows)[:, None], self.forced_on(rows)[:, None]
        paid, order = scores.masked_fill(~reach, -1).sort(dim=-1, descending=True, stable=True)
        levels, place = torch.zeros_like(order), torch.arange(scores.shape[3], device=scores.device)
        paid = paid.clamp(min=0)
        mass = paid.cumsum(-1) / paid.sum(-1, keepdim=True).clamp(min=1e-10)
        counts, before = reach.sum(-1, keepdim=True).float(), 0.0
        for level, share in self.quotas.items():
            if self.by == "mass":
                of = (mass > before) & (mass <= share)
            else:
                of = (place >= (counts * before).long()) & (place < (counts * share).long())
            levels, before = levels.masked_fill(of, level), share
        found = torch.zeros_like(order).scatter_(3, order, levels).masked_fill(~reach, 0)
        return found.masked_fill(sure, 1)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [
            Sample("squares of 2", cls(4, {1: 0.2, 2: 0.5, 4: 0.9}, stride=2)),
            Sample("shares of the mass, where keys are alike", cls(6, {1: 0.3, 3: 0.8}, {3: 0.1}, "mass", 3)),
        ]
