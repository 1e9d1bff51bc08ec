"""Routers that take as many blocks as a share of all that is wanted needs, and so differ in their counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.mechanism import accumulate_dtype, masked_softmax
from regard.patterns.choice import Choice, Rows, best
from regard.routers.base import EVERYTHING, Router, Summary, means, pooled, products
from regard.routers.blocks import Mean

Scope = Literal["query_head", "block", "head_global", "overall"]
SCOPES: dict[Scope, tuple[int, ...]] = {
    "query_head": (3,),
    "block": (1, 2),
    "head_global": (3, 2),
    "overall": (3, 1, 2),
}
"""Axes of scores (batch, heads, rows, blocks) over which the largest are taken together, by scope."""
TINY = 1e-6


class Shares(Router):
    """The base of routers with a share in the place of a budget: bidirectional, a share of one takes every block."""

    directions = (False,)
    share: Any

    def unlimited(self) -> Router:
        other = super().unlimited()
        assert isinstance(other, Shares)
        other.share = 1.0
        return other

    def chosen(self, mask: Tensor, rows: Rows) -> Choice:
        """The choice of the blocks in ``mask (b, h, rows, blocks)``."""
        most = max(int(mask.sum(-1).max()), 1) if mask.numel() else 1
        return Choice(best(torch.where(mask, 0.0, -torch.inf), most), rows)


def checked_share(share: float) -> float:
    """A share, refused outside of (0, 1]."""
    if not 0 < share <= 1:
        raise wrong("share", str(share), "above 0, up to 1 for every block")
    return share


class ScaledShare(Shares, Mean):
    """Blocks of the largest scaled scores of mean keys, until they have a share of all.

        g_ij = (q_i · mean(K_j) − min) / (max − min),   Σ of the taken g ≥ τ Σ g

    Minimum, maximum and sums are those of a scope: of each query, each block, each head or all of a sequence. The own
    block is always taken, and its part of the share counted; at least one more is in each scope. τ is ``share``.

    Args:
        block: keys in a block. share: τ. scope: what shares are of.
    """

    def __init__(self, block: int, share: float = 0.25, scope: Scope = "query_head") -> None:
        super().__init__(block, EVERYTHING, forced=("own",))
        if scope not in SCOPES:
            raise wrong("scope", repr(scope), f"one of {', '.join(SCOPES)}")
        self.share = checked_share(share)
        self.scope: Scope = scope

    def choose(self, scores: Tensor, rows: Rows) -> Choice:
        more = rows.blocks - scores.shape[3]
        scores = torch.nn.functional.pad(scores, (0, more)) if more else scores
        own, axes = rows.own()[:, None].expand_as(scores), SCOPES[self.scope]
        open_to = rows.routable()[:, None].expand_as(scores)
        if self.share >= 1 or not scores.numel():
            return self.chosen(open_to, rows)
        low = scores.masked_fill(~open_to, torch.inf).amin(axes, keepdim=True)
        span = scores.masked_fill(~open_to, -torch.inf).amax(axes, keepdim=True) - low
        scaled = ((scores - low) / span.masked_fill(span <= TINY, 1)).masked_fill(~open_to, 0)
        total = scaled.sum(axes, keepdim=True) + TINY
        wanted = (self.share - (scaled * own).sum(axes, keepdim=True) / total).clamp(min=0)
        others = folded(scaled.masked_fill(own, 0), axes)
        order = others.sort(dim=-1, descending=True, stable=True)
        reached = order.values.cumsum(-1) / folded(total, axes) >= folded(wanted, axes)
        last = torch.where(reached.any(-1), reached.int().argmax(-1), others.shape[-1] - 1)
        taken = torch.arange(others.shape[-1], device=scores.device) <= last[..., None]
        taken = unfolded(torch.zeros_like(taken).scatter_(-1, order.indices, taken), axes, scores.shape)
        return self.chosen((taken | own) & open_to, rows)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [
            Sample("of each query", cls(5, 0.4)),
            Sample("of a head", cls(4, 0.3, "head_global")),
            Sample("of a block", cls(4, 0.3, "block")),
        ]


class SimilarShare(Shares):
    """Blocks of the largest softmax of pooled scores, up to a share; blocks of unlike tokens are never judged by it.

        p_ij = softmax_j(mean(Q_i) · mean(K_j) / √d) over the blocks in reach whose tokens are alike
        alike: the mean cosine of all pairs of a block's tokens is above θ

    A row takes its largest p as long as their sum stays at most τ, and one at least; every block of keys that are not
    alike; and all blocks where its own queries are not. τ is ``share``, θ ``alike``, both for all heads or for each. In
    reach of a causal row are the past blocks and its own, which are no surer than others: with a share of its own
    blocks alone, a row's first queries may see nothing.

    Args:
        size: queries in a row. block: keys in a block. share: τ. alike: θ; with −1 all are. top: instead of τ, the
            share of all blocks, rounded down, that a row's largest p are. sink: whether the first is always taken.

    Raises:
        ValueError: a share or top outside of (0, 1].
    """

    directions = (False, True)
    past = False

    def __init__(
        self,
        size: int = 128,
        block: int = 64,
        share: float | Sequence[float] = 0.98,
        alike: float | Sequence[float] = 0.6,
        top: float | None = None,
        sink: bool = False,
    ) -> None:
        super().__init__(block, EVERYTHING, forced=("first",) if sink else (), size=size)
        for each in (share,) if isinstance(share, float | int) else share:
            checked_share(each)
        if top is not None and not 0 < top <= 1:
            raise wrong("top", str(top), "above 0, up to 1 for every block")
        self.share, self.alike, self.top = share, alike, top

    def unlimited(self) -> Router:
        other = super().unlimited()
        assert isinstance(other, SimilarShare)
        other.top = None
        return other

    def summary(self, k: Tensor) -> Summary:
        return means(k, self.block), cosines(k, self.block)[..., None]

    def width(self, head_dim: int) -> int:
        return head_dim + 1

    def flops(self, n: int, m: int, head_dim: int) -> int:
        return 2 * -(-n // self.size) * -(-m // self.block) * head_dim

    def scores(self, q: Tensor, summary: Summary, rows: Rows) -> Tensor:
        """Pooled scores, +∞ for what is always taken."""
        keys, like = summary
        found = products(pooled(q, self.size), keys) * q.shape[3] ** -0.5
        least = of_heads(self.alike, q.shape[1], "alike", q.device)
        unlike = like[..., 0].repeat_interleave(q.shape[1] // like.shape[1], 1) <= least
        mixed = cosines(q, self.size) <= least
        return found.masked_fill(unlike[:, :, None] | mixed[..., None], torch.inf)

    def choose(self, scores: Tensor, rows: Rows) -> Choice:
        more = rows.blocks - scores.shape[3]
        scores = torch.nn.functional.pad(scores, (0, more), value=-torch.inf) if more else scores
        open_to = self.reach(rows)[:, None].expand_as(scores)
        share = of_heads(self.share, scores.shape[1], "share", scores.device)[..., None]
        always = (scores == torch.inf) | self.forced_on(rows)[:, None]
        judged = scores.to(accumulate_dtype(scores.dtype)).masked_fill(scores == torch.inf, 0)
        order = masked_softmax(judged, open_to & (scores < torch.inf)).sort(dim=-1, descending=True, stable=True)
        count = (order.values.cumsum(-1) <= share).sum(-1, keepdim=True)
        count = count if self.top is None else torch.full_like(count, int(self.top * rows.blocks))
        taken = torch.arange(rows.blocks, device=scores.device) < count.clamp(min=1)
        taken = torch.zeros_like(always).scatter_(-1, order.indices, taken.expand_as(always))
        every = (share >= 1) & (self.top is None)
        return self.chosen((taken | always | every) & open_to, rows)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [
            Sample("rows of 4", cls(4, 4, 0.6, 0.1)),
            Sample("all alike", cls(6, 3, 0.5, -1.0)),
            Sample("so many blocks, and the first", cls(5, 4, alike=-1.0, top=0.3, sink=True)),
        ]


def of_heads(value: float | Sequence[float], heads: int, name: str, device: torch.device) -> Tensor:
    """``(heads or 1, 1)``: a number for all heads or one for each.

    Raises:
        ValueError: neither.
    """
    found = torch.tensor([value] if isinstance(value, float | int) else list(value), device=device)[:, None]
    if len(found) not in (1, heads):
        raise wrong(name, f"{len(found)} numbers", f"one, or one for each of the {heads} heads")
    return found


def cosines(x: Tensor, size: int) -> Tensor:
    """``(b, h, blocks)``: the mean cosine of all pairs of tokens of each block, a token with itself among them."""
    unit = torch.nn.functional.normalize(x, dim=3)
    return means(unit, size).square().sum(-1)


def folded(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``x (b, h, rows, blocks)`` with these axes, in this order, as the last one."""
    rest = [axis for axis in range(4) if axis not in axes]
    return x.permute(*rest, *axes).flatten(len(rest))


def unfolded(x: Tensor, axes: tuple[int, ...], shape: torch.Size) -> Tensor:
    """`folded` undone."""
    rest = [axis for axis in range(4) if axis not in axes]
    order = [*rest, *axes]
    return x.reshape([shape[axis] for axis in order]).permute([order.index(axis) for axis in range(4)])
