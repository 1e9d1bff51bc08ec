"""Keys at powers of two: receptive fields that double with every layer."""

from __future__ import annotations

from collections.abc import Sequence

from regard.core.atlas import Claim, published
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits
from regard.mechanisms.sparse.pattern import Patterned
from regard.patterns import Pattern, Power, Sinks, Window


@published(
    "power",
    family="sparse",
    row=110,
    title="PowerAttention: Exponentially Scaling of Receptive Fields for Effective Sparse Attention",
    arxiv="2503.03588",
    year=2025,
    aliases=("power_attention",),
    fidelity="hand values",
    claim=(
        Claim(
            "d layers cover every distance below 2^d without holes; equals masked dense attention",
            cells="patterns.power",
            holds="patterns.exact",
        ),
        Claim(
            "n log n pairs",
            cells="patterns.power_pairs",
            holds="common.is_true(figure=exact, said='pairs by the formula')",
        ),
        Claim(
            "four layers find a needle at any distance of 256 tokens, and 30 points more of them than a window of as "
            "many keys",
            cells="power_needle.beside",
            holds="power_needle.finds_at_any_distance",
        ),
    ),
)
class PowerAttention(Patterned):
    """Causal softmax attention to sinks, a window, and the keys (or blocks) 1, 2, 4, 8 … before the query.

        P(i) = {j ≤ i : j < sinks, or i − j < window, or ⌊i / block⌋ − ⌊j / block⌋ ∈ {0, 1, 2, 4, 8, …}}

    Args:
        window: w. sinks: first tokens that all see. block: tokens that count as one key. scale: None for
            ``1 / sqrt(d)``.

    Raises:
        ValueError: a window or block below one, sinks below zero.

    Paper: Chen et al., arXiv 2503.03588.
    """

    traits = Traits(bidirectional=False, cross=False, masked=True, rows="one", sign="nonnegative", time="loglinear")

    def __init__(self, window: int = 256, sinks: int = 64, block: int = 64, scale: float | None = None) -> None:
        super().__init__(scale)
        self.pattern = Window(window) | Sinks(sinks) | Power(block)

    def pattern_for(self, m: int, layout: Layout) -> Pattern:
        return self.pattern

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("tokens", cls(3, 2, 1), heads=3, kv_heads=3),
            Example("blocks of 8, grouped", cls(4, 3, 8), heads=4, kv_heads=2),
        ]
