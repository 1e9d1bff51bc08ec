"""Attention that skips what pooled queries and keys predict to be small, where pooling can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits, accumulate_dtype
from regard.mechanisms.sparse.routed import OfPrompts
from regard.patterns.choice import Choice
from regard.routers.base import blocked
from regard.routers.shares import SimilarShare

HIGHEST = 127
"""The largest code of 8 bits."""
TINY = 1e-7
"""What a scale is at least."""


@published(
    "sparge",
    family="sparse",
    row=185,
    title="SpargeAttention: Accurate and Training-free Sparse Attention Accelerating Any Model Inference",
    arxiv="2502.18137",
    year=2025,
    aliases=("sparge_attention", "spargeattn"),
    fidelity="authors' code",
    claim=Claim(
        text="on smooth grids it skips at least half of all pairs at a relative L1 error below 0.05",
        cells="routed.coherent",
        holds="routed.coherence_is_used",
    ),
)
class Sparge(OfPrompts):
    """Blocks of queries attend to the blocks of keys that the pooled scores give a share of attention.

    See `regard.routers.shares.SimilarShare` for the choice; the mean of all keys is taken off them before they are
    judged, which changes no attention and makes tokens less alike. With ``int8`` scores are products of 8-bit codes:

        s_ij = a_I a_J ⟨⌊q_i / a_I⌉, ⌊(k_j − k̄) / a_J⌉⟩ / √d,   a_I = max |q_i| / 127 over the block I of i

    ⌊·⌉ rounds halves away from zero; gradients take the codes for constants. Codes are exact here, their products are
    made in floating point, so no time is saved; weights and values stay as they are, as in the authors' kernels for
    GPUs without FP8.

    Untrained, for whole prompts, causal or not: a block's choice, and its scale, read the block's later tokens. A text
    that goes on attends to all of it. The authors' second stage leaves out blocks whose largest score is λ below the
    highest so far; their Triton kernel has it commented out, and their λ of 50 leaves out weights below 2⁻⁵⁰, which
    changes no output: it is not here. Nor is what their kernels make of a shorter last block, 0 / 0, by which it is
    always taken: here it is judged as the others are.

    Args:
        size: queries in a block. block: keys in a block. share: of the pooled attention that is taken at most. alike:
            the mean cosine above which a block is judged by its mean; both of all heads or of each. top: instead of
            ``share``, the share of blocks that is taken; the authors' later advice is 0.5, with ``alike=-0.1``. sink:
            whether the first block is always taken. int8: products of 8 bits.

    Raises:
        ValueError: a share or top outside of (0, 1], a block below one; in a call, shares for other heads than its own.

    Paper: Zhang et al., arXiv 2502.18137.
    """

    traits = Traits(
        cross=False, resumable=False, suffix=False, leaks=True, rows="at most one", sign="nonnegative", flops="at most"
    )

    def __init__(
        self,
        size: int = 128,
        block: int = 64,
        share: float | Sequence[float] = 0.98,
        alike: float | Sequence[float] = 0.6,
        top: float | None = None,
        sink: bool = False,
        int8: bool = False,
    ) -> None:
        traits = self.traits
        super().__init__(SimilarShare(size, block, share, alike, top, sink))
        self.traits, self.int8 = traits, int8

    def choice(self, q: Tensor, k: Tensor, causal: bool) -> Choice:
        return super().choice(q, centred(k), causal)

    def scored(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if not self.int8:
            return q, k
        wide = accumulate_dtype(q.dtype)
        return rounded(q.double(), self.router.size).to(wide), rounded(centred(k.double()), self.router.block).to(wide)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        router, (n, m) = self.router, (shape.n, shape.keys)
        cells = -(-n // router.size) * router.size * -(-m // router.block) * router.block
        flops = router.flops(n, m, shape.head_dim) + 4 * cells * max(shape.head_dim, shape.values)
        return Cost(shape.batch * shape.heads * flops, shape.io_bytes, shape.cache_bytes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("blocks of 8 and 4", cls(8, 4, 0.7, 0.1), heads=4, kv_heads=2),
            Example("all alike", cls(48, 33, 0.6, -1.0), heads=3, kv_heads=3),
            Example("half of the blocks, in 8 bits", cls(48, 33, alike=-0.1, top=0.5, sink=True, int8=True)),
            Example("each head its own", cls(6, 4, (0.3, 0.9, 0.5, 0.7), (-1.0, 0.2, 0.1, -0.3)), heads=4, kv_heads=2),
        ]


def centred(k: Tensor) -> Tensor:
    """Keys without their mean, in the precision of sums."""
    k = k.to(accumulate_dtype(k.dtype))
    return k - k.mean(2, keepdim=True)


def codes(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """``(b, h, blocks, size, d)`` whole numbers from −127 to 127, and the scale of each block that they are times."""
    blocks = blocked(x, size)
    scale = blocks.abs().amax((3, 4), keepdim=True) / HIGHEST + TINY
    parts = blocks / scale
    return (parts.abs() + 0.5).floor() * parts.sign(), scale


def rounded(x: Tensor, size: int) -> Tensor:
    """``x (b, h, n, d)`` as its codes of 8 bits have it."""
    whole, scale = codes(x, size)
    return (whole * scale).flatten(2, 3)[:, :, : x.shape[2]]
