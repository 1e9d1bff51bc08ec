"""Contrastive decoding against an edited copy of the same model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from regard.core.edit import Edit
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.decoding.base import Mixture
from regard.edits.tilt import KnockOut


class Contrast(Mixture):
    """Next tokens that the model says and its edited copy does not: s = log p + α (log p − log p̃).

    p is the model's distribution, p̃ that of the copy under ``edits``: what the edits take away is what counts more.

    Args:
        edits: of the copy. weight: α; at 0 it is the model's own decoding, whatever β. plausibility: β; tokens of less
            than β times the most likely one's probability are left out, as contrastive decoding does (0: none).

    Raises:
        ValueError: no edits; a plausibility outside of [0, 1].
    """

    dial: ClassVar[tuple[str, float] | None] = ("weight", 0.0)

    def __init__(self, edits: Sequence[Edit], weight: float = 1.0, plausibility: float = 0.0) -> None:
        if not edits:
            raise wrong("edits", "none", "at least one, of which the copy differs")
        if not 0 <= plausibility <= 1:
            raise wrong("plausibility", str(plausibility), "a share of the largest probability, 0 to 1")
        self.of, self.weight, self.plausibility = tuple(edits), weight, plausibility

    @property
    def copies(self) -> int:
        return 2

    def edits(self, copy: int) -> Sequence[Edit]:
        return self.of if copy else ()

    def mixed(self, logits: Tensor) -> Tensor:
        own, other = logits.log_softmax(-1).unbind(1)
        scores = own + self.weight * (own - other)
        if self.plausibility and self.weight:
            least = own.amax(-1, keepdim=True) + math.log(self.plausibility)
            scores = scores.masked_fill(own < least, -math.inf)
        return scores

    @classmethod
    def examples(cls) -> list[Sample]:
        return [
            Sample("without some keys", cls([KnockOut([(2, 5)])], 1.5)),
            Sample("plausible ones", cls([KnockOut([(2, 5)])], 3.0, 0.3)),
        ]
