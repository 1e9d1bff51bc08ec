"""Luong's attention over a source: a bilinear score of all of it, or of what lies near a place that is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.build import build_part
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import (
    Example,
    LayerSpec,
    Mechanism,
    Signal,
    Traits,
    accumulate_dtype,
    masked_softmax,
    repeat_heads,
)
from regard.kernels.tiled import Span
from regard.mechanisms.scored.parts.scores import SCORES, Bilinear


@published(
    "luong_general",
    family="structured",
    row=247,
    title="Effective Approaches to Attention-based Neural Machine Translation",
    arxiv="1508.04025",
    year=2015,
    aliases=("luong", "bilinear"),
    fidelity="hand values",
    claim=Claim(
        "a translator that reads by it gets at least 15 points more tokens right than one that does not read",
        cells="translation.translators(reader='luong_general')",
        holds="translation.better_than_none(points=0.15)",
    ),
)
class LuongGeneral(Bilinear):
    """Softmax attention with a learned matrix between query and key: ``s_ij = q_i · W_h k_j``, not scaled.

    The "general" score; "dot" is ``composed(score="dot(scale=1.0)")``, "concat" `Additive`. W is `map`. In a
    network that feeds what it has read to its next step: `networks.EncoderDecoder`.

    Args:
        heads, head_dim: of q.

    Raises:
        ValueError: q of other sizes.

    Paper: Luong, Pham and Manning, arXiv 1508.04025, equations 7 and 8.
    """

    layer = LayerSpec(rotary=False)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        torch.manual_seed(0)
        return [Example("2 heads, grouped", cls(2, 5), 2, 1)]


@published(
    "local_p",
    family="structured",
    row=247,
    title="Effective Approaches to Attention-based Neural Machine Translation",
    arxiv="1508.04025",
    year=2015,
    aliases=("luong_local", "local_predictive"),
    fidelity="hand values",
    claim=(
        Claim(
            "a translator that reads by it gets at least 15 points more tokens right than one that does not read",
            cells="translation.translators(reader='local_p')",
            holds="translation.better_than_none(points=0.15)",
        ),
        Claim(
            "a query scores 2 D + 1 keys at most, however long the source is",
            cells="translation.scores_of_local(reader='local_p')",
            holds="translation.is_flat",
        ),
    ),
)
class LocalP(Mechanism):
    """Softmax over a window around a place that the query predicts, its weights faded with their distance from it.

        p_i = S sigmoid(v_h · tanh(W_h q_i))
        A_ij = softmax_j(s_ij over |j − p_i| ≤ D) exp(−(j − p_i)² / (2 σ²)),   σ = D / 2

    S counts the keys of the sequence or document, j their places in it. The Gaussian comes after the softmax, so that
    rows sum to less than one. p is computed in float64: keys enter and leave the window at once. Bidirectional.

    W is `hidden`, v `place`, D ``reach``; p moves with the gradient through the Gaussian alone, as in the paper.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: 2 (2 D + 1)(d + e) FLOPs a query, whatever m, and what the score does before; memory as much.

    Args:
        heads, head_dim: of q. reach: D, at least 1. score: a part of `composed` that knows no places.

    Raises:
        ValueError: a reach below 1, a score that reads places, or q of other sizes.

    Paper: Luong, Pham and Manning, arXiv 1508.04025, equations 9 and 10.
    """

    traits = Traits(causal=False, rows="at most one", sign="nonnegative", time="linear")
    layer = LayerSpec(rotary=False)

    def __init__(self, heads: int = 4, head_dim: int = 64, reach: int = 10, score: str = "bilinear") -> None:
        super().__init__()
        if reach < 1:
            raise wrong("reach", str(reach), "at least 1")
        self.scorer = build_part({"heads": heads, "head_dim": head_dim}, "score", score, SCORES)
        if not self.scorer.traits.cross:
            raise wrong("score", repr(score), "one that does not read places: the window does")
        self.reach = reach
        self.hidden = nn.Parameter(torch.randn(heads, head_dim, head_dim) * head_dim**-0.5)
        self.place = nn.Parameter(torch.randn(heads, head_dim) * head_dim**-0.5)

    def places(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> tuple[Tensor, Tensor]:
        """p ``(b, h, n)`` and S ``(b or 1, 1, n)`` in float64."""
        count = layout.counts(q.shape[2], m, q.device).double()
        hidden = torch.tanh(q.double() @ self.hidden.double())
        return count * torch.sigmoid((hidden @ self.place.double()[:, :, None])[..., 0]), count

    def faded(self, apart: Tensor) -> Tensor:
        """The Gaussian of distances from p."""
        return torch.exp(-2 * (apart / self.reach).square())

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        n, m = q.shape[2], k.shape[2]
        left, right = self.scorer.prepared(q, repeat_heads(k, q.shape[1]))
        scores = self.scorer.score(q, m, layout)(left, right, Span(slice(0, n), slice(0, m)))
        place, _ = self.places(q, m, layout, **signals)
        apart = layout.positions(m, q.device)[:, None, None] - place[..., None]
        near = layout.allowed(n, m, q.device) & (apart.abs() <= self.reach)
        return masked_softmax(scores, near) * self.faded(apart).to(scores.dtype)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        (b, h, n, _), m, wide = q.shape, k.shape[2], accumulate_dtype(q.dtype)
        if m == 0 or n == 0:
            return q.new_zeros(b, h, n, v.shape[3])
        place, count = self.places(q, m, layout, **signals)
        near = (place - self.reach).detach().ceil()[..., None] + torch.arange(2 * self.reach + 1, device=q.device)
        apart = near - place[..., None]
        seen = (near >= 0) & (near < count[..., None]) & (apart.abs() <= self.reach)
        slots = slots_of(near.long(), layout, n, m).flatten(2)
        left, right = self.scorer.prepared(q.to(wide), repeat_heads(k, h).to(wide))
        keys, values = (
            x.gather(2, slots[..., None].expand(-1, -1, -1, x.shape[3])).unflatten(2, (n, -1))
            for x in (right, repeat_heads(v, h).to(wide))
        )
        scores = along(self.scorer.score(q, m, layout), left, keys)
        a = masked_softmax(scores, seen) * self.faded(apart).to(wide)
        return (a[..., None, :] @ values)[..., 0, :].to(q.dtype)

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        self.scorer.check(q, k, v, layout, {})

    def placing(self, d: int) -> int:
        """Products that find the place of a query of d numbers."""
        return d * d + d

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        each, before = self.scorer.products(shape)
        products = shape.n * ((2 * self.reach + 1) * (each + shape.values) + self.placing(shape.head_dim)) + before
        return Cost(2 * shape.batch * shape.heads * products, shape.io_bytes, 0)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        torch.manual_seed(0)
        return [
            Example("reach 3", cls(1, 5, 3), 1, 1),
            Example("reach 2, additive, grouped", cls(2, 5, 2, "additive"), 2, 1),
        ]


@published(
    "local_m",
    family="structured",
    row=247,
    title="Effective Approaches to Attention-based Neural Machine Translation",
    arxiv="1508.04025",
    year=2015,
    aliases=("local_monotonic",),
    fidelity="hand values",
    claim=(
        Claim(
            "a translator that reads by it gets at least 15 points more tokens right than one that does not read",
            cells="translation.translators(reader='local_m')",
            holds="translation.better_than_none(points=0.15)",
        ),
        Claim(
            "a query scores 2 D + 1 keys at most, however long the source is",
            cells="translation.scores_of_local(reader='local_m')",
            holds="translation.is_flat",
        ),
    ),
)
class LocalM(LocalP):
    """Softmax over a window around the query's own number: what is written goes through the source in step with it.

        A_ij = softmax_j(s_ij over |j − p_i| ≤ D),   p_i = i

    i is the signal ``place``, since a decoder asks one query at a time; `networks.EncoderDecoder` counts its steps.
    Rows sum to one, and to zero where the window lies behind the last key.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)``, ``place (b, 1, n)`` -> ``(b, h, n, e)``.
    Cost: 2 (2 D + 1)(d + e) FLOPs a query, whatever m, and what the score does before; memory as much.

    Args:
        heads, head_dim, reach, score: as in `LocalP`.

    Raises:
        ValueError: as `LocalP`; a place below zero.

    Paper: Luong, Pham and Manning, arXiv 1508.04025, section 3.2.
    """

    signals: ClassVar = {
        "place": Signal("the number of the query, from 0", side="query", heads="shared", low=0.0, hard=True)
    }

    def __init__(self, heads: int = 4, head_dim: int = 64, reach: int = 10, score: str = "bilinear") -> None:
        super().__init__(heads, head_dim, reach, score)
        del self.hidden, self.place

    def places(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> tuple[Tensor, Tensor]:
        """p ``(b, h, n)`` and S ``(b or 1, 1, n)`` in float64."""
        return signals["place"].double().expand(-1, q.shape[1], -1), layout.counts(q.shape[2], m, q.device).double()

    def placing(self, d: int) -> int:
        return 0

    def faded(self, apart: Tensor) -> Tensor:
        """One: nothing fades."""
        return torch.ones_like(apart)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        torch.manual_seed(0)
        return [
            Example("reach 3, 2 heads", cls(2, 5, 3), 2, 2),
            Example("reach 2, additive, grouped", cls(2, 5, 2, "additive"), 2, 1),
        ]


def along(score, left: Tensor, keys: Tensor) -> Tensor:
    """Scores ``(b, h, n, w)`` of each query ``left (b, h, n, d)`` with keys of its own, ``(b, h, n, w, d)``."""
    b, n = left.shape[0], left.shape[2]
    folded = (x.transpose(1, 2).flatten(0, 1) for x in (left[..., None, :], keys))
    return score(*folded, Span(slice(0, 1), slice(0, keys.shape[3]))).unflatten(0, (b, n))[..., 0, :].transpose(1, 2)


def slots_of(near: Tensor, layout: Layout, n: int, m: int) -> Tensor:
    """Where in memory the tokens lie that have these places ``(b, h, n, w)`` in the documents of the queries."""
    real = torch.ones(1, m, dtype=torch.bool, device=near.device) if layout.key_mask is None else layout.key_mask
    order = (~real).long().argsort(dim=1, stable=True)
    if layout.segments is not None:
        before = real.long().cumsum(1) - 1 - layout.positions(m, near.device)
        near = near + before[:, None, m - n :, None].clamp(min=0)
    order = order.expand(near.shape[0], m)[:, None].expand(-1, near.shape[1], -1)
    return order.gather(2, near.clamp(0, m - 1).flatten(2)).unflatten(2, near.shape[2:])
