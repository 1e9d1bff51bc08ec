"""Efficient local attention."""

from __future__ import annotations

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.composed import Composed

SIZES = {"T": (5, 1, 32), "B": (7, 1, 16), "S": (5, 8, 16), "L": (7, 8, 16)}
"""Kernel, channels of a group of the convolution, groups of the norm."""


@published(
    "ela",
    family="featuremap",
    kind="gate",
    row=56,
    title="ELA: Efficient Local Attention for Deep Convolutional Neural Networks",
    arxiv="2403.01123",
    year=2024,
    fidelity="hand values",
    aliases=("efficient_local_attention",),
    claim=Claim(
        "as many convolution weights as channels times the kernel in T and B, eight times that in S and L; a "
        "map alone is gated as in a batch, in training too",
        cells="featuremap.strips",
        holds="featuremap.is_light_and_alone",
    ),
)
class EfficientLocalAttention(Composed):
    """Rows and columns are weighed by one convolution along their means and a group norm, no channel reduced.

        f_row = σ(norm(conv_k(mean over columns))),   f_column likewise, the same conv and norm

    | size | kernel | groups of the convolution | groups of the norm |
    |---|---|---|---|
    | T | 5 | c | 32 |
    | B | 7 | c | 16 |
    | S | 5 | c / 8 | 16 |
    | L | 7 | c / 8 | 16 |

    Parameters: c k (T, B) or 8 c k (S, L), and 2 c of the norm.

    Args:
        channels: c. size: T, B, S or L.

    Raises:
        ValueError: another size, or channels that its groups do not divide.

    Paper: Xu and Wan, arXiv 2403.01123, whose authors published no code.
    """

    def __init__(self, channels: int, size: str = "B") -> None:
        if size not in SIZES:
            raise wrong("size", repr(size), f"one of {', '.join(SIZES)}")
        kernel, together, norm = SIZES[size]
        mix = f"strips(kernel={kernel}, groups={max(channels // together, 1)}, norm_groups={norm})"
        super().__init__(channels, over="x y", mix=mix)

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample(f"ela(size={size})", cls(32, size)) for size in SIZES]
