"""Attention that skips what pooled queries and keys predict to be small, where pooling can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.mechanism import Example, Traits, accumulate_dtype
from regard.mechanisms.sparse.routed import Routed
from regard.patterns.choice import Choice
from regard.routers.shares import SimilarShare


@published(
    "sparge",
    family="sparse",
    row=185,
    title="SpargeAttention: Accurate and Training-free Sparse Attention Accelerating Any Model Inference",
    arxiv="2502.18137",
    year=2025,
    aliases=("sparge_attention", "spargeattn"),
    fidelity="authors' code",
    missing="causal attention, products in 8 bits, and the second stage, which skips values whose weights come out "
    "small (the authors' Triton kernel leaves it out too)",
    claim=Claim(
        text="on smooth grids it skips at least half of all pairs at a relative L1 error below 0.05",
        cells="routed.coherent",
        holds="routed.coherence_is_used",
    ),
)
class Sparge(Routed):
    """Blocks of queries attend to the blocks of keys that the pooled scores give a share of attention.

    See `regard.routers.shares.SimilarShare` for the choice; the mean of all keys is taken off them before they are
    judged, which changes no attention and makes tokens less alike. Only bidirectional, untrained.

    Args:
        size: queries in a block. block: keys in a block. share: of the pooled attention that is taken at most.
        alike: the mean cosine above which a block is judged by its mean.

    Raises:
        ValueError: a share outside of (0, 1], a block below one.

    Paper: Zhang et al., arXiv 2502.18137.
    """

    traits = Traits(causal=False, cross=False, rows="one", sign="nonnegative", flops="at most")

    def __init__(self, size: int = 128, block: int = 64, share: float = 0.98, alike: float = 0.6) -> None:
        traits = self.traits
        super().__init__(SimilarShare(size, block, share, alike))
        self.traits = traits

    def choice(self, q: Tensor, k: Tensor, causal: bool) -> Choice:
        k = k.to(accumulate_dtype(k.dtype))
        return super().choice(q, k - k.mean(2, keepdim=True), causal)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("blocks of 8 and 4", cls(8, 4, 0.7, 0.1), heads=4, kv_heads=2),
            Example("all alike", cls(48, 33, 0.5, -1.0), heads=3, kv_heads=3),
        ]
