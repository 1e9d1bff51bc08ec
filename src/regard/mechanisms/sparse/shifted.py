"""Attention inside of groups, which half of the heads shift: S² and SF attention of LongLoRA and SinkLoRA."""

from __future__ import annotations

from collections.abc import Sequence

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits
from regard.mechanisms.sparse.pattern import Patterned
from regard.patterns import Blocks, Pattern, PerHead, Sinks


@published(
    "sinklora",
    family="sparse",
    row=223,
    title="SinkLoRA: Enhanced Efficiency and Chat Capabilities for Long-Context Large Language Models",
    arxiv="2406.05678",
    year=2024,
    aliases=("s2_attention", "sf_attention", "longlora", "shifted_groups"),
    fidelity="hand values",
    claim=(
        Claim(
            (
                "groups of both kinds of heads and sinks equal masked dense attention; sinks are visible to "
                "every later query; two layers pass every border of groups"
            ),
            cells="patterns.shifted_groups",
            holds="patterns.exact",
        ),
        Claim(
            "tuned for 4 times the length, SF groups keep more of full attention's gain than S² groups",
            cells="extend.tuned",
            holds="extend.keeps_more",
        ),
        Claim(
            "tuned by its groups and decoded with H2O, a model's cache never exceeds its budget, and it tells texts "
            "better than with as many recent tokens",
            cells="groups_then_hitters.decoded",
            holds="groups_then_hitters.within_its_budget",
        ),
    ),
)
class ShiftedGroups(Patterned):
    """Softmax attention inside of groups of tokens; some heads have their groups shifted by half of one.

        P(i) = {j : ⌊(j + s_h) / size⌋ = ⌊(i + s_h) / size⌋ or j < sinks},   s_h = size / 2 for the last heads, else 0

    Args:
        heads: number of heads. size: tokens of a group (LongLoRA: a quarter of the length). shifted: share of the heads
            whose groups are shifted: 0.5 is S² attention, less is SF attention, which rolls some back. sinks: first
            tokens that every later one sees: 0 for S². scale: None for ``1 / sqrt(d)``.

    Raises:
        ValueError: a size below two, a share outside of 0 … 1, sinks below zero.

    Papers: Zhang, arXiv 2406.05678; Chen et al. (LongLoRA), 2309.12307, whose rolled groups join the last tokens to
    the first; here the group at each end is a short one instead, so that nothing leaks from the end to the start. It is
    for tuning; a tuned model is decoded with its own softmax and the cache that keeps heavy hitters, ``regard.compress(
    model, "h2o")``.
    """

    traits = Traits(cross=False, masked=True, rows="one", sign="nonnegative", time="linear", state="constant")

    def __init__(
        self, heads: int = 4, size: int = 256, shifted: float = 0.5, sinks: int = 4, scale: float | None = None
    ) -> None:
        super().__init__(scale)
        if size < 2 or heads < 1:
            raise wrong("size, heads", f"{size}, {heads}", "groups of at least 2 tokens, at least one head")
        if not 0 <= shifted <= 1:
            raise wrong("shifted", str(shifted), "a share of 0 to 1")
        first = heads - round(heads * shifted)
        groups = [Blocks(size, 0 if h < first else size // 2) | Sinks(sinks) for h in range(heads)]
        self.pattern = PerHead(groups)

    def pattern_for(self, m: int, layout: Layout) -> Pattern:
        return self.pattern

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("S²", cls(2, 8, sinks=0)),
            Example("SF, grouped", cls(4, 16, shifted=0.25, sinks=3), heads=4, kv_heads=2),
        ]
