"""The linear attention of L²ViT: rectified features, a clamped sum, a learned temperature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn, relu

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, LayerSpec, Traits, check_sizes
from regard.mechanisms.linear.base import Averaged


@published(
    "l2vit",
    family="vit",
    row=348,
    title="The Linear Attention Resurrection in Vision Transformer",
    arxiv="2501.16182",
    year=2025,
    aliases=("enhanced_linear_attention", "clamped_linear"),
    fidelity="authors' code",
    claim=(
        Claim(
            "keys and values first equals queries and keys first",
            cells="vision.clamped",
            holds="common.within(most=1e-7)",
        ),
        Claim(
            "four times the pixels cost four times the FLOPs", cells="vision.four_times", holds="vision.cost_four_times"
        ),
        Claim(
            "on digits the local concentration module does not harm",
            cells="vision.concentrated",
            holds="vision.module_does_not_harm",
        ),
        Claim(
            "the ten largest weights of linear attention hold less than softmax's",
            cells="vision.concentrated",
            holds="vision.holds_less",
        ),
    ),
)
class Clamped(Averaged):
    """Linear attention of rectified queries and keys whose divisor is kept from being small.

        A_ij = τ_h relu(q_i) · relu(k_j) / max(Σ_j relu(q_i) · relu(k_j), least)

    A is ``weights``; τ is ``temperature (heads,)``, learned from 1 / √d on. Rows sum to τ_h, or less where the clamp
    holds. See `Averaged` for both directions and `Recurrent` for shapes and state.

    Args:
        heads: of q. head_dim: d. least: below which no sum counts.

    Raises:
        ValueError: q has other heads or another d; a ``least`` that is not positive.

    Paper: Zheng, arXiv 2501.16182. `L2ViT` has the module around it.
    """

    traits = Traits(time="linear", state="constant")
    layer = LayerSpec(rotary=False)

    def __init__(self, heads: int = 4, head_dim: int = 16, least: float = 100.0) -> None:
        super().__init__()
        if not least > 0:
            raise wrong("least", str(least), "above 0")
        self.head_dim, self.least = head_dim, least
        self.temperature = nn.Parameter(torch.full((heads,), head_dim**-0.5))

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return relu(q), relu(k)

    def finish(self, out: Tensor, dtype: torch.dtype) -> Tensor:
        return (super().finish(out, out.dtype) * self.temperature[:, None, None]).to(dtype)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor) -> Tensor:
        return super().weights(q, k, layout, **signals) * self.temperature[:, None, None].to(q.dtype)

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        check_sizes(q, len(self.temperature), self.head_dim)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("plain", cls(3, Example.head_dim, least=1.0), heads=3, kv_heads=3),
            Example("clamped, grouped", cls(4, Example.head_dim), heads=4, kv_heads=2),
        ]
