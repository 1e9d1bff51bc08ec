"""Attention with linear biases: the farther a key, the lower its score, at a rate of its own for each head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits
from regard.kernels import toeplitz
from regard.mechanisms.scored.parts.biases import Linear
from regard.mechanisms.scored.under_bias import UnderBias


@published(
    "alibi",
    family="scored",
    title="Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation",
    arxiv="2108.12409",
    year=2021,
    aliases=("linear_biases",),
    fidelity="third-party code",
    claim=(
        Claim(
            ("scores depend on distances alone, so that a text shifted by any number of tokens is attended to alike"),
            cells="scored.shifted",
            holds="common.within(most=1e-12)",
        ),
        Claim(
            "models trained short read longer texts: their loss grows less",
            cells="small_lm.beside(layers='alibi*2')",
            holds="scored.reads_longer_texts",
        ),
    ),
)
class Alibi(UnderBias):
    """Softmax attention whose scores fall with distance, so that no positions need be added to the tokens.

        A_ij = softmax_j(q_i · k_j / √d − s_h |p_i − p_j|),   s_h = 2^{−8h/H},   h = 1 … H

    A is ``weights``; s is ``slopes``; p counts the real tokens of a sequence or document.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: the fused operator's, 4 max(d, e) FLOPs for each score of the tiles; with padding or packed documents, where
    places are no longer distances in memory, 2 (d + e). State: all keys and values.

    Args:
        slopes: one for each head, at least 0; None for those above (for H no power of two, those of the powers around).

    Raises:
        ValueError: a slope below zero, or another number of them than q has heads.

    Paper: Press et al., arXiv 2108.12409; causal there, the bidirectional form is that of its follow-ups.
    """

    traits = Traits(masked=True, biased=True, rows="one", sign="nonnegative", cross=False)
    bias: Linear

    def __init__(self, slopes: Sequence[float] | None = None):
        super().__init__(Linear(slopes))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        if not layout.plain:
            return super().forward(q, k, v, layout, **signals)
        n, m = q.shape[2], k.shape[2]
        apart = (torch.arange(n + m - 1, device=q.device) - (m - 1)).abs()
        return toeplitz.attend(q, k, v, -self.bias.rates(q)[:, None] * apart, layout.causal)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        base = super().cost(shape, layout)
        least, most = sorted((shape.head_dim, shape.values))
        flops = base.flops * 2 * most // (least + most) if layout.plain else base.flops
        return Cost(flops, base.bytes, base.state_bytes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("default slopes", cls(), heads=3, kv_heads=3),
            Example("given slopes, grouped", cls((0.0, 0.1, 0.7, 5.0)), heads=4, kv_heads=2),
        ]
