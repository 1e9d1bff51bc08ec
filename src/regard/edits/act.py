"""Attention calibration (ACT): the attention sinks that stand in the text give their mass back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.edit import Edit, Heads, Place, Rows, Where, sampled
from regard.core.errors import wrong
from regard.core.kinds import Sample

OTHERS, SINKS = 0, 1


@published(
    "act",
    family="steering",
    kind="edit",
    row=213,
    title="Unveiling and Harnessing Hidden Attention Sinks: Enhancing Large Language Models without Training through "
    "Attention Calibration",
    arxiv="2406.15765",
    year=2024,
    fidelity="hand values",
    claim=(
        Claim(
            "giving the mass of sinks back helps: key–value lookup in SmolLM2",
            cells="steering.act",
            holds="steering.calibrated",
        ),
        Claim(
            "the heads that gain by it alone do not lower lookups that were not searched",
            cells="searched_heads.act",
            holds="searched_heads.no_lower",
        ),
    ),
)
class ACT(Edit):
    """Attention sinks other than the first lose a share of their mass to the keys that are none, in proportion.

        sinks S_h = {j : mean_i A_ij > α} without the first of them;   A_ij ← β A_ij for j in S_h,
        A_ij ← A_ij (1 + (1 − β) Σ_S A_i· / Σ_others A_i·) for others

    The mean of a column is over the queries that see it. While a text is continued the means go on with its queries;
    so a row does not only depend on those before it, and a decoded row is not that of one pass over the whole.

    Args:
        alpha: α, an absolute share as in the authors' code (their text has α/N). beta: β; 1 changes nothing.
        heads: those that gain by it, each tried alone on 900 examples by the authors, which is
            `hosts.head_search.search_heads`. layers: theirs are 2 … L − 2.
        rows, batch: see `core.edit.Where`.

    Raises:
        RuntimeError: a text is continued of which the beginning was not seen.
    """

    dial: ClassVar[tuple[str, float] | None] = ("beta", 1.0)
    resumable = False

    def __init__(
        self,
        beta: float = 0.4,
        alpha: float = 0.1,
        *,
        heads: Heads | None = None,
        layers: Iterable[int] | None = None,
        rows: Rows | None = None,
        batch: Sequence[int] | None = None,
    ) -> None:
        if not 0 <= beta <= 1:
            raise wrong("beta", str(beta), "0 to 1, what sinks keep of their mass")
        super().__init__(Where(layers, heads, rows, batch=batch))
        self.beta, self.alpha = beta, alpha
        self.seen: dict[int, tuple[int, Tensor, Tensor]] = {}

    def groups(self, place: Place) -> Tensor:
        sums, counts = self.columns(place)
        sinks = (sums > self.alpha * counts) & place.keys[:, None, place.start :]
        first = sinks & (sinks.cumsum(2) == 1)
        return torch.where(sinks & ~first, SINKS, OTHERS)

    def columns(self, place: Place) -> tuple[Tensor, Tensor]:
        """The sums of the columns so far, and by how many queries each was seen, ``(b, heads, m)``."""
        assert place.columns is not None
        sums, counts = place.columns()
        begun = int(place.rows[0])
        if place.again:
            return sums, counts
        if begun:
            sequence, *earlier = self.seen.get(place.layer, (-1,))
            if sequence != place.sequence or place.start:
                what = f"a text that goes on after {begun} tokens, whose columns were not all seen"
                wanted = "a cache that begins inside, without a window, and keeps its sequences"
                raise wrong("cache", what, wanted, RuntimeError)
            for now, before in zip((sums, counts), earlier, strict=True):
                now[..., : before.shape[2]] += before[..., : now.shape[2]]
        self.seen[place.layer] = (place.sequence, sums, counts)
        return sums, counts

    def masses(self, m: Tensor, place: Place) -> Tensor:
        others, sinks = m[..., OTHERS], m[..., SINKS]
        freed = torch.where(others > 0, (1 - self.beta) * sinks, 0)
        return torch.stack([others + freed, sinks - freed], dim=-1)

    @classmethod
    def examples(cls) -> list[Sample]:
        return sampled(cls(alpha=0.15), cls(0.7, 0.1, heads={1: [0, 2, 5]}))
