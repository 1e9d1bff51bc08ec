"""Routers that score a block of keys by what is summed up of it: its mean, its bounds, between both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.core.kinds import Sample
from regard.core.mechanism import repeat_heads
from regard.patterns.choice import Rows
from regard.routers.base import Router, Summary, blocked, means, pooled, products


class Mean(Router):
    """The score of the mean key: ``s_ij = q_i · mean(K_j)``."""

    def summary(self, k: Tensor) -> Summary:
        return (means(k, self.block),)

    def width(self, head_dim: int) -> int:
        return head_dim

    def scores(self, q: Tensor, summary: Summary, rows: Rows) -> Tensor:
        return products(pooled(q, self.size), summary[0])

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [
            Sample("a query alone", cls(block=5, budget=4)),
            Sample("its own block alone is forced", cls(block=3, budget=3, forced=("own",))),
            Sample("rows of 4 queries", cls(block=8, budget=4, size=4)),
        ]


class Bound(Router):
    """The largest score that a key between the block's minima and maxima could have.

    ``s_ij = Σ_c max(q_ic · min_c K_j, q_ic · max_c K_j)``: never below the score of any key of the block.
    """

    def summary(self, k: Tensor) -> Summary:
        high, low = blocked(k, self.block, -torch.inf).amax(3), blocked(k, self.block, torch.inf).amin(3)
        return (torch.cat([high, low], -1),)

    def width(self, head_dim: int) -> int:
        return 2 * head_dim

    def scores(self, q: Tensor, summary: Summary, rows: Rows) -> Tensor:
        return products(split_by_sign(pooled(q, self.size)), summary[0])

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [Sample("a query alone", cls(block=4, budget=5)), Sample("rows of 2", cls(block=4, budget=4, size=2))]


class Middle(Bound):
    """Halfway between the score of the mean key and the bound: ``(q · mean + bound) / 2``."""

    def summary(self, k: Tensor) -> Summary:
        centre = means(k, self.block).repeat(1, 1, 1, 2)
        return ((super().summary(k)[0] + centre) / 2,)


class FirstKey(Mean):
    """The score of the block's first key."""

    def summary(self, k: Tensor) -> Summary:
        return (blocked(k, self.block)[:, :, :, 0],)


class Oracle(Router):
    """The mass that softmax attention gives the block: the ceiling of its budget, at the price of all scores.

    ``s_ij = log Σ_{t ∈ j} exp(q_i · k_t / √d)``; with rows of several queries, of their mean mass.
    """

    def summary(self, k: Tensor) -> Summary:
        blocks = blocked(k, self.block)
        real = torch.ones_like(k[:1, :1, :, :1], dtype=blocks.dtype)
        return blocks.flatten(3), blocked(real, self.block)[..., 0].expand(k.shape[0], k.shape[1], -1, -1)

    def width(self, head_dim: int) -> int:
        return self.block * (head_dim + 1)

    def scores(self, q: Tensor, summary: Summary, rows: Rows) -> Tensor:
        keys, real = summary
        every = products(q, keys.unflatten(3, (self.block, -1)).flatten(2, 3)) * q.shape[3] ** -0.5
        shown = repeat_heads(real, q.shape[1]).flatten(2)[:, :, None] > 0
        if self.size == 1:
            return every.masked_fill(~shown, -torch.inf).unflatten(3, (-1, self.block)).logsumexp(-1)
        places = torch.arange(keys.shape[2] * self.block, device=q.device)
        late = (places > rows.here[:, None, :, None]) & rows.causal
        mass = every.masked_fill(~shown | late, -torch.inf).log_softmax(-1).nan_to_num(-torch.inf).exp()
        return pooled(mass.unflatten(3, (-1, self.block)).sum(-1), self.size)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [Sample("a query alone", cls(block=4, budget=4)), Sample("rows of 2", cls(block=4, budget=4, size=2))]


class Random(Mean):
    """Blocks by chance, the same for a position whenever it asks: the floor of its budget."""

    def summary(self, k: Tensor) -> Summary:
        return (k.new_zeros(*k.shape[:2], -(-k.shape[2] // self.block), 1, dtype=torch.float32),)

    def width(self, head_dim: int) -> int:
        return 1

    def scores(self, q: Tensor, summary: Summary, rows: Rows) -> Tensor:
        head = torch.arange(q.shape[1], device=q.device)[:, None, None]
        number = torch.arange(summary[0].shape[2], device=q.device)
        mixed = torch.sin((rows.first[:, None, :, None] * 127.1 + head * 269.5 + number * 311.7).double()) * 43758.5453
        return (mixed - mixed.floor()).to(q.dtype).expand(q.shape[0], -1, -1, -1)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [Sample("a query alone", cls(block=5, budget=4))]


def split_by_sign(q: Tensor) -> Tensor:
    """``(…, 2 d)``: what is positive of each coordinate, then what is negative."""
    return torch.cat([q.clamp(min=0), q.clamp(max=0)], -1)


SCORES = {
    "mean": Mean,
    "bound": Bound,
    "middle": Middle,
    "first": FirstKey,
    "oracle": Oracle,
    "random": Random,
}
"""Routers of blocks by the name of their score."""
