"""Radial attention: the further apart two frames of a video, the less of each other they see."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits
from regard.mechanisms.sparse.pattern import Patterned
from regard.patterns import Pattern, Radial, RoundedRadial

rounded = lru_cache(maxsize=8)(RoundedRadial)
"""Kept, since it is the same in every layer and step."""


@published(
    "radial",
    family="sparse",
    row=140,
    title="Radial Attention: O(n log n) Sparse Attention with Energy Decay for Long Video Generation",
    arxiv="2506.19852",
    year=2025,
    aliases=("radial_attention",),
    fidelity="authors' code",
    claim=(
        Claim(
            "follows its rules of halving bands; equals masked dense attention",
            cells="patterns.radial",
            holds="patterns.exact",
        ),
        Claim(
            "the density of frames falls as log(n) / n",
            cells="patterns.radial_pairs",
            holds="patterns.grows_as_n_log_n",
        ),
        Claim(
            (
                "on scores that decay over space and time the output is at most half as wrong as with a "
                "window of equal density"
            ),
            cells="patterns.radial_error",
            holds="patterns.is_half_as_wrong",
        ),
    ),
)
class RadialAttention(Patterned):
    """Bidirectional softmax attention of video tokens through bands that halve as the distance in time doubles.

    `regard.patterns.Radial` has the equation. The last frame may be cut short.

    Args:
        frame: tokens of a frame; ``layout.grid`` is not needed. least: the narrowest band. scale: None for
            ``1 / sqrt(d)``. factor: of the bands' widths. block: tokens of the blocks that the bands are rounded to by
            their density, 128 in the paper, 0 for the bands themselves.

    Raises:
        ValueError: a number below one, a factor of zero, a block below zero.

    Paper: Li et al., arXiv 2506.19852, whose narrowest band is a block.
    """

    traits = Traits(causal=False, cross=False, masked=True, rows="one", sign="nonnegative", time="loglinear")

    def __init__(
        self, frame: int = 64, least: int = 16, scale: float | None = None, factor: float = 0.5, block: int = 0
    ) -> None:
        super().__init__(scale)
        if block < 0:
            raise wrong("block", str(block), "1 or more, or 0 for no rounding")
        if min(frame, least) < 1:
            raise wrong("frame, least", f"{frame}, {least}", "at least 1 each")
        if not factor > 0:
            raise wrong("factor", str(factor), "above 0")
        self.frame, self.least, self.factor, self.block = frame, least, factor, block

    def pattern_for(self, m: int, layout: Layout) -> Pattern:
        grid = max(-(-m // self.frame), 1), self.frame
        if self.block:
            return rounded(grid, self.block, self.least, self.factor)
        return Radial(grid, self.least, self.factor)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("frames of 8", cls(8, 2), 3, 3), Example("frames of 5, grouped", cls(5, 1), 4, 2)]
