"""Cog attention: weights of either sign, whose absolute values sum to one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits
from regard.kernels import tiled
from regard.mechanisms.scored.base import Scored
from regard.mechanisms.scored.parts.normalisers import signed_softmax


@published(
    "cog",
    family="scored",
    row=230,
    title="More Expressive Attention with Negative Weights",
    arxiv="2411.07176",
    year=2024,
    aliases=("cog_attention", "signed_softmax"),
    fidelity="authors' code",
    claim=(
        Claim(
            "weights of both signs whose absolute values sum to one", cells="scored.signs", holds="scored.both_signs"
        ),
        Claim(
            "a language model of four layers, the inner two of them, loses nothing: at most 1%",
            cells="small_lm.tuned_shorter(layers='softmax, cog*2, softmax', steps=2000)",
            holds="small_lm.tuned_loss_at_most(ratio=1.01)",
        ),
        Claim(
            "and texts whose last token is repeated stay farther apart",
            cells="small_lm.tuned_shorter(layers='softmax, cog*2, softmax', steps=2000)",
            holds="scored.stays_apart",
        ),
    ),
)
class Cog(Scored):
    """Each query weighs keys by the softmax of their scores' absolute values, and gives each its score's sign.

        A_ij = sign(s_ij) exp(|s_ij|) / Σ_j exp(|s_ij|),   s = q_i · k_j / √d

    Paper: Lv et al., arXiv 2411.07176, which keeps softmax in the first and the last layer.
    """

    traits = Traits(masked=True, equivariant=True)

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> tiled.Dot:
        return tiled.Dot(q.shape[-1] ** -0.5)

    def normalised(self, scores: Tensor, allowed: Tensor) -> Tensor:
        return signed_softmax(scores, allowed)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        return tiled.attend(q, k, v, layout, self.score(q, k.shape[2], layout), tiled.Softmax(signed=True))

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("plain", cls(), heads=3, kv_heads=3), Example("grouped", cls(), heads=4, kv_heads=2)]
