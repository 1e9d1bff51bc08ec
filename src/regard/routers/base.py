"""The contract of routers: a summary of each block of keys, scores of queries against it, a choice by these."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import reduce
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from regard.core.arguments import Configured
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.mechanism import accumulate_dtype
from regard.patterns.choice import Choice, Rows, best

Forced = Literal["own", "previous", "first"]
Summary = tuple[Tensor, ...]
"""What is known of each block of keys, each tensor ``(batch, kv_heads, blocks, …)``."""
FEW = 4
"""Queries of a group up to which what they are multiplied with is read by rows: in half of the time, if from memory."""
EVERYTHING = 1 << 40
"""A budget that no sequence exceeds."""


class Router(Configured):
    """The base of every router: ``choose(scores(q, summary(k)))``.

        C_i = forced_i ∪ the blocks with the largest s_ij among those that are routable,   |C_i| ≤ budget

    Causal, a block is routable for a query only when it is complete and wholly past; of the query's own block it sees
    the keys up to itself. Scores are as large as they come: not scaled by 1/√d, in the precision of sums. Of equal
    scores the block of the lower number is taken. Selection has no gradient.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)`` -> ``index (b, h, rows, budget)``.

    Args:
        block: keys in a block. budget: blocks for each row, the forced ones among them.
        forced: blocks that are always among them: the query's own, the one before it, the first.
        size: queries in a row, which choose together. With more than one, a row's choice reads the later queries of
            its row: it `leaks`.

    Raises:
        ValueError: a block, budget or size below one, an unknown forced block, more of them than the budget.
    """

    leaks: ClassVar[bool] = False
    """Whether the choice of a query reads later tokens even where a row is one query."""
    past: ClassVar[bool] = True
    """Whether, causal, blocks are chosen by their scores among those complete and past alone: else a row's own blocks
    are too, whose summary reads its later keys."""
    shared: ClassVar[bool] = False
    """Whether the heads of a group choose together."""
    directions: ClassVar[tuple[bool, ...]] = (True, False)
    """The values of ``Rows.causal`` that it chooses for."""

    def __init__(
        self,
        block: int,
        budget: int,
        forced: Sequence[Forced] = ("own", "previous", "first"),
        size: int = 1,
    ) -> None:
        super().__init__()
        if min(block, budget, size) < 1:
            raise wrong("block, budget, size", f"{block}, {budget}, {size}", "at least 1 each")
        if unknown := set(forced) - {"own", "previous", "first"}:
            raise wrong("forced", ", ".join(sorted(unknown)), "some of own, previous, first")
        self.block, self.budget, self.forced, self.size = block, budget, tuple(forced), size
        if self.most_forced > budget:
            raise wrong("budget", str(budget), f"at least the {self.most_forced} blocks that are forced")

    def extra_repr(self) -> str:
        """The constructor's arguments as they were given."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())

    @property
    def most_forced(self) -> int:
        """The most blocks that are forced on a row."""
        own = 1 + (self.size + self.block - 2) // self.block if "own" in self.forced else 0
        return own + sum(name in self.forced for name in ("previous", "first"))

    @property
    def causal(self) -> bool:
        """Whether the choice of a query reads no later token."""
        return self.size == 1 and self.past and not self.leaks

    def summary(self, k: Tensor) -> Summary:
        """What is known of each block of ``k (b, g, m, d)``, the last block being shorter."""
        raise NotImplementedError

    def width(self, head_dim: int) -> int:
        """Numbers in the summary of one block of one kv head."""
        raise NotImplementedError

    def scores(self, q: Tensor, summary: Summary, rows: Rows) -> Tensor:
        """``(b, h, rows, blocks)``: how much each row wants each block that is summed up; larger is better."""
        raise NotImplementedError

    def flops(self, n: int, m: int, head_dim: int) -> int:
        """FLOPs of the products of ``scores`` for one head."""
        return 2 * n * -(-m // self.block) * self.width(head_dim)

    def reach(self, rows: Rows) -> Tensor:
        """``(batch or 1, rows, blocks)`` bool: the blocks to choose from."""
        return rows.routable() if self.past or not rows.causal else rows.routable() | rows.own()

    def forced_on(self, rows: Rows) -> Tensor:
        """``(batch or 1, rows, blocks)`` bool: the blocks that are always chosen."""
        ways = {"own": rows.own, "previous": rows.previous, "first": rows.leading}
        found = [ways[name]() for name in self.forced]
        return reduce(torch.logical_or, found) if found else torch.zeros_like(rows.routable())

    def choose(self, scores: Tensor, rows: Rows) -> Choice:
        """The forced blocks and the best of the others, up to the budget."""
        more = rows.blocks - scores.shape[3]
        scores = nn.functional.pad(scores, (0, more), value=-torch.inf) if more else scores
        scores = torch.where(rows.routable()[:, None], scores, -torch.inf)
        scores = scores.masked_fill_(self.forced_on(rows)[:, None], torch.inf)
        return Choice(best(scores, min(self.budget, rows.blocks)), rows)

    @torch.no_grad()
    def forward(self, q: Tensor, k: Tensor, rows: Rows, summary: Summary | None = None) -> Choice:
        """The choice of queries ``q`` over keys ``k``, whose ``summary`` may be at hand.

        Raises:
            ValueError: rows that see no later keys, of a router that chooses among all, or the other way around.
        """
        if rows.causal not in self.directions:
            raise wrong("rows.causal", str(rows.causal), f"{not rows.causal}, as {type(self).__name__} chooses")
        q = q.to(accumulate_dtype(q.dtype))
        summary = self.summary(k) if summary is None else summary
        return self.choose(self.scores(q, summary, rows), rows)

    def rows(self, here: Tensor, m: int, causal: bool) -> Rows:
        """Queries at the positions ``here (batch or 1, n)``, in this router's rows over its blocks of ``m`` keys."""
        return Rows(here, m, self.block, self.size, causal)

    def unlimited(self) -> Router:
        """The same router with a budget that takes every block."""
        other = copy.deepcopy(self)
        other.budget = EVERYTHING
        return other

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        """Small instances that the laws of routers examine."""
        raise NotImplementedError


def blocked(k: Tensor, block: int, fill: float = 0.0) -> Tensor:
    """``(b, g, blocks, block, d)`` in the precision of sums, the last block filled up with ``fill``."""
    k = k.to(accumulate_dtype(k.dtype))
    return nn.functional.pad(k, (0, 0, 0, -k.shape[2] % block), value=fill).unflatten(2, (-1, block))


def means(k: Tensor, block: int) -> Tensor:
    """``(b, g, blocks, d)``: the mean key of each block."""
    sizes = (k.shape[2] - torch.arange(0, k.shape[2], block, device=k.device)).clamp(max=block)
    return blocked(k, block).sum(3) / sizes[:, None]


def products(q: Tensor, s: Tensor) -> Tensor:
    """``(b, h, n, x)``: ``q (b, h, n, d)`` times each of ``s (b, g, x, d)``, the heads of a group sharing one."""
    if not q.numel():
        return q.new_zeros(*q.shape[:3], s.shape[2])
    flat = s.to(q.dtype).flatten(0, 1)
    grouped = q.reshape(len(flat), -1, q.shape[3])
    found = torch.bmm(flat, grouped.mT).mT if grouped.shape[1] <= FEW else torch.bmm(grouped, flat.mT)
    return found.reshape(*q.shape[:3], s.shape[2])


def pooled(q: Tensor, size: int) -> Tensor:
    """``(b, h, rows, d)``: the mean query of each row of ``size``, the last being shorter."""
    return q if size == 1 else means(q, size)
