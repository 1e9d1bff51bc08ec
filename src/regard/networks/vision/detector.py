"""Detectors of one stage: what reads boxes and classes from each cell of the levels that a neck gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from regard.networks.base import Network


class Detector(Network):
    """The base of detectors: stages, pools over the coarsest map, a neck, and a head for each of its levels.

    A subclass makes ``stem``, ``stages``, ``pools``, ``neck`` and ``heads``, and says the pixels from cell to cell of
    the levels in ``steps``. A head gives what `detections` reads.

    Shapes: ``images (b, 3, y, x)`` of any height and width -> ``(b, cells, 4 + classes)``: the middle, the width and
    the height of the box in pixels, and probabilities.
    """

    steps: ClassVar[Sequence[int]]
    stem: nn.Module
    stages: nn.ModuleList
    pools: nn.Module
    neck: nn.Module
    heads: nn.ModuleList

    def features(self, images: Tensor) -> list[Tensor]:
        """The maps of the four stages."""
        x, found = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return [*found[:-1], self.pools(x)]

    def forward(self, images: Tensor) -> Tensor:
        levels = zip(self.heads, self.neck(self.features(images)), self.steps, strict=True)
        return torch.cat([detections(head(level), level, step) for head, level, step in levels], 1)


def detections(read: tuple[Tensor, Tensor], level: Tensor, step: int) -> Tensor:
    """Boxes in pixels, middle, width and height, and probabilities ``(b, cells, 4 + classes)`` of one level.

    Args:
        read: scores ``(b, classes, cells)`` before the sigmoid, and distances ``(b, 4, cells)`` in cells, to the left,
            top, right and bottom. level: the map that they were read from. step: pixels from cell to cell.
    """
    scores, distances = read
    left, top, right, bottom = distances.unbind(1)
    steps = (torch.arange(n, device=level.device, dtype=level.dtype) + 0.5 for n in level.shape[2:])
    y, x = (each.flatten() for each in torch.meshgrid(*steps, indexing="ij"))
    box = (x + (right - left) / 2, y + (bottom - top) / 2, left + right, top + bottom)
    return torch.cat((step * torch.stack(box, 2), torch.sigmoid(scores).mT), 2)
