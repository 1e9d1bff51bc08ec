"""Differential attention: the difference of two softmax maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.layer import Norm
from regard.core.mechanism import Example, LayerSpec
from regard.mechanisms.scored.contrasted import Contrasted


@published(
    "differential",
    family="scored",
    title="Differential Transformer",
    arxiv="2410.05258",
    year=2024,
    aliases=("diff_transformer", "differential_attention"),
    fidelity="third-party code",
    claim=(
        Claim(
            "what both maps attend to alike cancels by λ, which starts by the layer",
            cells="scored.cancelled",
            holds="scored.cancels_by_share",
        ),
        Claim(
            "language models of it do better",
            cells="small_lm.tuned(layers='differential*2')",
            holds="small_lm.tuned_loss_at_most(ratio=1.0)",
        ),
    ),
)
class Differential(Contrasted):
    """Softmax attention less λ times a second one, so that what both attend to without reason cancels.

        A = softmax(q₁ k₁ᵀ / √(d/2)) − λ softmax(q₂ k₂ᵀ / √(d/2)),   λ = exp(λ_q1·λ_k1) − exp(λ_q2·λ_k2) + λ_init
        λ_init = 0.8 − 0.6 exp(−0.3 l)

    q₁, q₂ are the halves of q's coordinates, l is ``layer_index``, and the four λ vectors ``(d/2,)`` the rows of
    ``vectors``, shared by the heads. The host norms each head's output and multiplies it with 1 − λ_init.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h; e is d there.
    Cost: ``8 n m max(d/2, e)`` FLOPs a head as counted, O(n + m) memory. State: all keys and values.

    Args:
        head_dim: d, even; networks fill it in. layer_index: l, from 0.

    Raises:
        ValueError: an odd head_dim, a layer below 0, or q of another head_dim.

    Paper: Ye et al., arXiv 2410.05258; 1e-5 under the root of its norm.
    """

    def __init__(self, head_dim: int, layer_index: int = 0) -> None:
        super().__init__(head_dim)
        if layer_index < 0:
            raise wrong("layer_index", str(layer_index), "0 or more")
        self.initial = 0.8 - 0.6 * math.exp(-0.3 * layer_index)
        self.vectors = nn.Parameter(0.1 * torch.randn(4, head_dim // 2))
        self.layer = LayerSpec(parts=2, norm=Norm(factor=1 - self.initial))

    def share(self, like: Tensor) -> Tensor:
        """λ, one number."""
        q1, k1, q2, k2 = self.vectors.to(like.dtype)
        return torch.exp(q1 @ k1) - torch.exp(q2 @ k2) + self.initial

    @classmethod
    def examples(cls) -> Sequence[Example]:
        torch.manual_seed(0)
        return [Example("plain", cls(6), 3, 3, head_dim=6), Example("layer 5, grouped", cls(10, 5), 4, 2, head_dim=10)]
