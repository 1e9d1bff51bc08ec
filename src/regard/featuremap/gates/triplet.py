"""Triplet attention."""

from __future__ import annotations

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.featuremap.composed import Composed


@published(
    "triplet",
    family="featuremap",
    kind="gate",
    row=30,
    title="Rotate to Attend: Convolutional Triplet Attention Module",
    arxiv="2010.03045",
    year=2020,
    fidelity="authors' code",
    aliases=("triplet_attention",),
    claim=Claim(
        "it is the map turned for each of three branches, gated and turned back, by 98 weights and a norm a "
        "branch whatever the channels",
        cells="featuremap.triplet",
        holds="featuremap.is_three_turned_maps",
    ),
)
class Triplet(Composed):
    """The mean of three gates, each over two axes of the map, from maximum and mean along the third.

        y = x ⊙ (f_yx + f_cx + f_cy) / 3,   f = σ(norm(conv_k(max ‖ mean)))

    The map is read along each axis where it lies and multiplied once. Parameters: 3 (2 k² + 2).

    Args:
        channels: c. kernel: k, odd.

    Paper: Misra et al., arXiv 2010.03045. Among several equal maxima the gradient is shared.
    """

    def __init__(self, channels: int, kernel: int = 7) -> None:
        super().__init__(channels, over="y x c", pool="z", mix=f"conv2d(kernel={kernel})", rule="mean")

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("triplet", cls(7)), Sample("triplet(kernel=3)", cls(12, kernel=3))]
