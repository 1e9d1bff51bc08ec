"""How far each token looks back and how much is looked back at it: the rhythm of a text that a model writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.tile import Tile
from regard.probes.head_statistics import refuse_other
from regard.probes.token_statistics import OneSequence


@dataclass(frozen=True)
class Beat:
    """What heads of one layer do at each token.

    Args:
        span: ``(batch, heads)``: the mean distance of what a row attends to. distance: ``(batch, heads, n)``, of each
            row, clipped. influence: ``(batch, heads, n)``: the mean weight that later rows give to each token, zero
            for the last.
    """

    span: Tensor
    distance: Tensor
    influence: Tensor


class Rhythm(OneSequence):
    """Windowed average attention distance and future attention influence of every head.

        WAAD_t = Σ_s A_ts · min(t − s, W),   FAI_s = mean over rows t > s of A_ts

    Distances are between slots, padding never in between but before or behind; rows that are padding count for nothing.

    Args:
        window: W.

    Paper: arXiv 2510.13554.
    """

    name = "rhythm"

    def __init__(self, window: int = 10) -> None:
        super().__init__()
        if window < 1:
            raise wrong("window", str(window), "at least one token")
        self.window = window
        self.layers: dict[int, dict[str, Tensor]] = {}

    def update(self, tile: Tile) -> None:
        self.check(tile)
        if tile.share < 1:
            raise wrong("rows", "a sample", "all rows: what later rows give to a token is a sum over all of them")
        batch, heads = tile.weights.shape[:2]
        sums = self.layers.setdefault(
            tile.layer, {name: tile.weights.new_zeros(batch, heads, 0, dtype=torch.float64) for name in NAMES}
        )
        sums |= {name: longer(held, tile.m) for name, held in sums.items()}
        self.layers[tile.layer] = sums
        keys = torch.arange(tile.m, device=tile.rows.device)[tile.columns]
        far = tile.rows[:, None] - keys
        weights = tile.weights.double() * tile.queries[:, None, :, None]
        sums["distance"][:, :, tile.rows] = (weights * far.clamp(0, self.window)).sum(3)
        sums["whole"][:, :, tile.rows] = (weights * far.clamp(min=0)).sum(3)
        sums["rows"][:, :, tile.rows] = tile.queries[:, None].double().expand(-1, heads, -1)
        later = far > 0
        sums["received"][:, :, tile.columns] += (weights * later).sum(2)

    def merge(self, other: Self) -> None:
        refuse_other(self, other)
        raise wrong(
            "other", "a probe of other rows", "one pass over each text: tokens are not means over texts", TypeError
        )

    def result(self) -> dict[int, Beat]:
        """By layer."""
        found = {}
        for layer, sums in sorted(self.layers.items()):
            rows = sums["rows"]
            after = rows.flip(2).cumsum(2).flip(2) - rows
            span = sums["whole"].sum(2) / rows.sum(2).clamp(min=1)
            found[layer] = Beat(span, sums["distance"], sums["received"] / after.clamp(min=1))
        return found


NAMES = ("distance", "whole", "rows", "received")


def longer(held: Tensor, size: int) -> Tensor:
    """The same with zeros up to ``size`` tokens."""
    return torch.nn.functional.pad(held, (0, max(0, size - held.shape[2])))
