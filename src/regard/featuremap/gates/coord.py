"""Coordinate attention."""

from __future__ import annotations

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.featuremap.composed import Composed


@published(
    "coord",
    family="featuremap",
    kind="gate",
    title="Coordinate Attention for Efficient Mobile Network Design",
    arxiv="2103.02907",
    year=2021,
    fidelity="third-party code",
    aliases=("coordinate_attention",),
    claim=Claim(
        "a cell's factors depend on its whole row and its whole column and on no other cell",
        cells="featuremap.reaches(gate='coord(ratio=2)', long=99, wide=1)",
        holds="featuremap.is_the_cross",
    ),
)
class Coordinate(Composed):
    """Rows and columns are weighed, for each channel, by a bottleneck that both share and a matrix for each.

        f_row = σ(W_r hardswish(norm(W mean over columns))),   f_column likewise

    Parameters: 3 c h + 2 h, h = c / ratio rounded to the divisor.

    Args:
        channels: c. ratio, divisor: of the bottleneck; timm has ratio 24.

    Paper: Hou et al., arXiv 2103.02907.
    """

    def __init__(self, channels: int, ratio: float = 32, divisor: int = 8) -> None:
        super().__init__(channels, over="x y", mix=f"joint(ratio={ratio}, divisor={divisor})")

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("coord", cls(16)), Sample("coord(ratio=3)", cls(12, 3, 1))]
