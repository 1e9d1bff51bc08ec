"""ZeroTuning: one number for the attention to the first token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from regard.core.atlas import Claim, published
from regard.core.edit import Heads, Rows, Where, sampled
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.edits.tilt import Tilt


@published(
    "zero_tuning",
    family="steering",
    kind="edit",
    row=345,
    title="ZeroTuning: Unlocking the Initial Token's Power to Enhance Large Language Models Without Training",
    arxiv="2505.11739",
    year=2025,
    fidelity="abstract only",
    claim=Claim(
        "one factor at the first token, searched, gains on held-out lookups in SmolLM2, and more than at random tokens",
        cells="steering.zero_tuning",
        holds="steering.zero_tuned",
    ),
)
class ZeroTuning(Tilt):
    """The attention to the first token scaled, and rows scaled back to one.

        a₀' = γ a₀ / D,   a_i' = a_i / D,   D = 1 + (γ − 1) a₀

    Args:
        gamma: γ; above 1 more goes to the first token, below 1 less. The first is that of the unpadded text.
        heads, layers, rows, batch: see `core.edit.Where`; the paper sorts heads by whether more or less helps, which
            `hosts.head_profile` does.

    The authors' model file was not at hand.
    """

    dial: ClassVar[tuple[str, float] | None] = ("gamma", 1.0)

    def __init__(
        self,
        gamma: float,
        *,
        heads: Heads | None = None,
        layers: Iterable[int] | None = None,
        rows: Rows | None = None,
        batch: Sequence[int] | None = None,
    ) -> None:
        if not gamma >= 0:
            raise wrong("gamma", str(gamma), "a number from 0 on; 1 changes nothing")
        super().__init__(Where(layers, heads, rows, [(0, 1)], batch=batch))
        self.gamma = gamma

    @property
    def factor(self) -> float:
        return self.gamma

    @classmethod
    def examples(cls) -> list[Sample]:
        return sampled(cls(0.6), cls(2.5, heads={0: [1, 4], 1: [0]}))
