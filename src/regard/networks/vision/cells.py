"""What a detector says of each cell of its levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Read:
    """What a detector says of each cell of its levels, one level after the other.

    Args:
        scores: ``(b, cells, classes)`` before the sigmoid. sides: ``(b, cells, 4)``, distances to the left, top, right
            and bottom of the cell's box in steps. bins: ``(b, cells, 4, bins)`` before the softmax, None where
            distances are not told by bins. direct: whether distances are told beside the bins, not by them. places:
            ``(cells, 2)``, the cells' middles in pixels. steps: ``(cells,)``, pixels from cell to cell. counts: cells
            of each level. maps: that were read.
    """

    scores: Tensor
    sides: Tensor
    bins: Tensor | None
    direct: bool
    places: Tensor
    steps: Tensor
    counts: tuple[int, ...]
    maps: list[Tensor]

    def boxed(self, sides: Tensor) -> Tensor:
        """Boxes in pixels, left, top, right, bottom, of distances in steps."""
        away = sides * self.steps[:, None]
        return torch.cat((self.places - away[..., :2], self.places + away[..., 2:]), -1)

    @property
    def boxes(self) -> Tensor:
        """The boxes that are found ``(b, cells, 4)``: left, top, right, bottom in pixels."""
        return self.boxed(self.sides)

    @property
    def by_bins(self) -> Tensor:
        """Distances ``(b, cells, 4)`` that the bins say, ``sides`` where there are none."""
        return expected(self.bins.permute(0, 2, 3, 1)).mT if self.direct and self.bins is not None else self.sides


def expected(bins: Tensor) -> Tensor:
    """``Σ_k k softmax(bins)_k`` over the axis of bins, ``(b, 4, bins, cells)`` -> ``(b, 4, cells)``."""
    steps = torch.arange(bins.shape[2], device=bins.device, dtype=bins.dtype)
    return (torch.softmax(bins, 2) * steps[:, None]).sum(2)


def middles(level: Tensor) -> Tensor:
    """The middles ``(cells, 2)`` of a map's cells, x and y, in cells."""
    steps = (torch.arange(n, device=level.device, dtype=level.dtype) + 0.5 for n in level.shape[2:])
    y, x = (each.flatten() for each in torch.meshgrid(*steps, indexing="ij"))
    return torch.stack((x, y), 1)
