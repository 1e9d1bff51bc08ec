"""A router that looks into ever shorter chunks of keys, stage by stage, and can begin with what a stage found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.mechanism import accumulate_dtype
from regard.patterns.choice import Choice, Rows, best
from regard.routers.base import EVERYTHING, Router, Summary, blocked
from regard.routers.tree import TILE, Halves, picked

Lists = tuple[Tensor, ...]
"""The first tokens of the chunks that each stage but the first begins with, and last the blocks that are found."""


class Stages(Halves):
    """Chunks of c_1 keys, of which those with the best keys are kept and cut into chunks of c_2 keys, and so on.

    The past between the first and the nearest blocks is cut into chunks of c_1 keys. A chunk is halved, the half whose
    middle key scores higher is kept, and halved again, down to one key; the chunk's score is the highest score met on
    the way. After each stage the best chunks of ``k_i`` keys in all go on, after the last ``keep`` chunks of one block.

    Args:
        stages: c_i and k_i of each stage but the last, whose chunks are the blocks. block, keep, near, size, sinks: as
            of `Halves`.

    Raises:
        ValueError: no stages, chunks that the next ones do not divide, or too few keys kept for a chunk.

    Paper: Lee et al., arXiv 2502.08910, and the code of hip-attention 1.2: chunks of 256, 32 and 8 keys, of which
    32,768, 8,192 and 2,048 keys are kept.
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, int]] = ((256, 32_768), (32, 8192)),
        block: int = 8,
        keep: int = 256,
        near: int = 128,
        size: int = 1,
        sinks: int = 32,
    ) -> None:
        super().__init__(block, keep, near, size, sinks)
        chunks = [*(chunk for chunk, _ in stages), block]
        if (
            not stages
            or any(a <= b or a % b for a, b in pairwise(chunks))
            or any(kept < chunk for chunk, kept in stages)
        ):
            raise wrong(
                "stages", f"{tuple(stages)} over blocks of {block}", "chunks that the next divide, one kept at least"
            )
        self.chunks = chunks
        self.kept = [*(kept // chunk for chunk, kept in stages), keep]

    def unlimited(self) -> Router:
        other = super().unlimited()
        assert isinstance(other, Stages)
        other.kept = [EVERYTHING] * len(self.kept)
        return other

    def summary(self, k: Tensor) -> Summary:
        """The keys themselves."""
        return (blocked(k, self.block).flatten(3),)

    def width(self, head_dim: int) -> int:
        return self.block * head_dim

    def looks(self, m: int) -> int:
        """At how many keys a query looks at most, of so many."""
        count, looked = -(-m // self.chunks[0]), 0
        for place, chunk in enumerate(self.chunks):
            looked += 2 * count * self.halvings(chunk)
            if place + 1 < len(self.chunks):
                count = min(count, self.kept[place]) * (chunk // self.chunks[place + 1])
        return looked

    def flops(self, n: int, m: int, head_dim: int) -> int:
        rows = -(-n // self.size) * self.size
        return 2 * rows * self.looks(m) * head_dim

    @staticmethod
    def halvings(chunk: int) -> int:
        """How often a chunk of so many keys is halved, down to one key, and that one looked at."""
        return math.ceil(math.log2(chunk)) + 1

    def score(self, score_at: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, chunk: int) -> Tensor:
        """The highest score met in each chunk from ``low`` up to ``high``; −∞ in those of no keys."""
        found = torch.full(low.shape, -torch.inf, device=low.device)
        for _ in range(self.halvings(chunk)):
            centre, there = (low + high) // 2, low < high
            left, right = score_at((low + centre) // 2), score_at((centre + high) // 2)
            wins = left > right
            found = torch.where(there, torch.maximum(found.to(left), torch.where(wins, left, right)), found.to(left))
            low, high = torch.where(wins | ~there, low, centre), torch.where(wins & there, centre, high)
        return found

    def searched(
        self, score_at: Callable[[Tensor], Tensor], rows: Rows, heads: int, batch: int, old: Lists = (), stage: int = 0
    ) -> Lists:
        """The lists of all stages, from ``stage`` on anew and those of ``old`` before; blocks are −1 for none."""
        first = torch.div(rows.first, rows.block, rounding_mode="floor") - self.near if rows.causal else rows.blocks
        last = torch.as_tensor(first * rows.block, device=rows.here.device).expand(len(rows.here), rows.count)
        last = last.clamp(min=0, max=rows.m)[:, None, :, None]
        lists = list(old[:stage])
        if stage:
            low = old[stage - 1]
        else:
            sure = self.sinks * rows.block
            start = torch.arange(sure, max(rows.m, sure + 1), self.chunks[0], device=last.device)
            low = start.expand(batch, heads, rows.count, -1)
        for place in range(stage, len(self.chunks)):
            chunk = self.chunks[place]
            high = torch.minimum(low + chunk, last)
            scores = self.score(score_at, low, high, chunk).masked_fill((low < 0) | (high <= low), -torch.inf)
            chosen = best(scores, min(self.kept[place], low.shape[3]))
            low = low.gather(3, chosen.clamp(min=0)).masked_fill(chosen < 0, -1)
            if place + 1 < len(self.chunks):
                parts = torch.arange(0, chunk, self.chunks[place + 1], device=low.device)
                low = (low[..., None] + parts).masked_fill(low[..., None] < 0, -1).flatten(3)
                lists.append(low)
        return *lists, torch.div(low, rows.block, rounding_mode="floor")

    def choose(self, scores: Tensor, rows: Rows) -> Choice:
        more = rows.blocks - scores.shape[3]
        scores = torch.nn.functional.pad(scores, (0, more), value=-torch.inf) if more else scores

        def score_at(tokens: Tensor) -> Tensor:
            return scores.gather(3, (tokens // rows.block).clamp(min=0, max=max(rows.blocks - 1, 0)))

        return self.joined(self.searched(score_at, rows, scores.shape[1], len(scores))[-1], rows)

    def found(self, q: Tensor, summary: Summary, rows: Rows) -> Tensor:
        parts = []
        for start in range(0, rows.n, TILE * self.size):
            some = slice(start, min(start + TILE * self.size, rows.n))
            parts.append(self.lists(q[:, :, some], summary, rows.at(some))[-1])
        width = min(self.keep, rows.blocks)
        return torch.cat(parts, 2) if parts else torch.zeros(*q.shape[:2], 0, width, dtype=torch.int64, device=q.device)

    @torch.no_grad()
    def lists(self, q: Tensor, summary: Summary, rows: Rows, old: Lists = (), stage: int = 0) -> Lists:
        """`searched` by the scores of ``q`` with the keys of the summary."""
        keys, wide = summary[0].unflatten(3, (self.block, -1)).flatten(2, 3), accumulate_dtype(q.dtype)
        more = rows.count * self.size - rows.n
        queries = torch.nn.functional.pad(q.to(wide), (0, 0, 0, more)).unflatten(2, (-1, self.size))
        real = torch.arange(rows.count * self.size, device=q.device).view(-1, self.size, 1) < rows.n

        def score_at(tokens: Tensor) -> Tensor:
            products = queries @ picked(keys, tokens.clamp(min=0)).mT.to(wide)
            return products.masked_fill(~real, -torch.inf).amax(3)

        return self.searched(score_at, rows, q.shape[1], len(q), old, stage)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [
            Sample("two stages", cls(((8, 16),), 2, 4, 1, 1, 1)),
            Sample("three stages, rows of 4", cls(((12, 24), (6, 12)), 2, 3, 0, 4, 2)),
        ]
