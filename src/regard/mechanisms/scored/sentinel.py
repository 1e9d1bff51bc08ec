"""A visual sentinel: one more key for each query, which stands for what it knows without looking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.build import build_part
from regard.core.cost import Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, LayerSpec, Signal, Traits, accumulate_dtype, masked_softmax, repeat_heads
from regard.core.reduction import Partial
from regard.kernels import tiled
from regard.kernels.tiled import Score
from regard.mechanisms.scored.base import Scored
from regard.mechanisms.scored.luong import along
from regard.mechanisms.scored.parts.scores import SCORES


@published(
    "sentinel",
    family="structured",
    row=159,
    title="Knowing When to Look: Adaptive Attention via a Visual Sentinel for Image Captioning",
    arxiv="1612.01887",
    year=2017,
    aliases=("adaptive_attention", "visual_sentinel"),
    fidelity="hand values",
    claim=(
        Claim(
            "a captioner of drawn scenes looks at the image more at colours and shapes than at words between them",
            cells="captions.away",
            holds="captions.looks_when_it_must",
        ),
        Claim(
            "its captions are as good as those without a sentinel",
            cells="captions.away",
            holds="captions.costs_nothing",
        ),
        Claim(
            "a translator whose target has words that stand for nothing in the source looks away at them",
            cells="translation.looking_away",
            holds="translation.looks_away",
        ),
    ),
)
class Sentinel(Scored):
    """Softmax attention in which each query has one more key of its own, the sentinel, whose share is not looking.

        A_ij = exp(s(q_i, k_j)) / (exp(z_i) + Σ_j exp(s(q_i, k_j))),   z_i = s(q_i, t_i),   β_i = 1 − Σ_j A_ij

    t is the signal ``sentinel``, β what `looking` gives. The paper's context is ``A v + β t'`` with t' the sentinel's
    own value, which the network adds: A v is linear in v. As the sentinel's score falls, this is plain attention.
    `networks.captioning.adaptive` has the paper's captioner, whose image network learns with the rest.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)``, ``sentinel (b, h, n, d)`` -> ``(b, h, n, e)``.
    Cost: that of the score, with one more key. State: all keys and values.

    Args:
        score: a part of `composed` that knows no places. heads, head_dim: of q.

    Raises:
        ValueError: a score that reads places, or q of other sizes.

    Paper: Lu et al., arXiv 1612.01887, equations 6 and 10 to 13.
    """

    traits = Traits(masked=True, rows="at most one", sign="nonnegative")
    layer = LayerSpec(rotary=False)
    signals: ClassVar = {"sentinel": Signal("a key for what the query knows already", side="query", dim="key")}

    def __init__(self, score: str = "additive", heads: int = 4, head_dim: int = 64) -> None:
        super().__init__()
        self.scorer = build_part({"heads": heads, "head_dim": head_dim}, "score", score, SCORES)
        if not self.scorer.traits.cross:
            raise wrong("score", repr(score), "one that does not read places: the sentinel has none")

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Score:
        return self.scorer.score(q, m, layout)

    def prepared(self, q: Tensor, k: Tensor, **signals: Tensor) -> tuple[Tensor, Tensor]:
        return self.scorer.prepared(q, k)

    def away(self, q: Tensor, sentinel: Tensor) -> Tensor:
        """z, ``(b, h, n)``, in the precision of sums."""
        wide = accumulate_dtype(q.dtype)
        left, right = self.scorer.prepared(q.to(wide), sentinel.to(wide))
        return along(self.scorer.score(q, 1, Layout()), left, right[..., None, :])[..., 0]

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        scores = self.scores(q, k, layout, rows, **signals)
        away = self.away(q[:, :, rows], signals["sentinel"][:, :, rows]).to(scores.dtype)
        seen = layout.allowed(q.shape[2], k.shape[2], q.device, rows)
        both = torch.nn.functional.pad(seen, (0, 1), value=True)
        return masked_softmax(torch.cat([scores, away[..., None]], -1), both)[..., :-1]

    def read(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, sentinel: Tensor) -> tuple[Tensor, Tensor]:
        """``A v`` and 1 − β."""
        left, right = self.prepared(q, repeat_heads(k, q.shape[1]))
        part: Partial = tiled.attend_lse(left, right, repeat_heads(v, q.shape[1]), layout, self.score(q, 1, layout))
        shown = torch.sigmoid(part.lse - self.away(q, sentinel))
        return part.out.to(q.dtype) * shown[..., None].to(q.dtype), shown

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        return self.read(q, k, v, layout, signals["sentinel"])[0]

    def looking(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        """1 − β, ``(b, h, n)``: the share of each query that its keys have."""
        self.check(q, k, None, layout, signals)
        return self.read(q, k, k[..., :1], layout, signals["sentinel"])[1].to(q.dtype)

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        self.scorer.check(q, k, v, layout, {})

    def products(self, shape: Shape) -> tuple[int, int]:
        each, before = self.scorer.products(shape)
        own = Shape(shape.n, shape.n, head_dim=shape.head_dim)
        return each, before + self.scorer.products(own)[1] + shape.n * each

    @classmethod
    def examples(cls) -> Sequence[Example]:
        torch.manual_seed(0)
        return [
            Example("network", cls("network(hidden=3)", 1, 5), 1, 1),
            Example("bilinear, grouped", cls("bilinear", 2, 5), 2, 1),
        ]
