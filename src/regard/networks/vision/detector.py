"""Detectors of one stage: what reads boxes and classes from each cell of the levels that a neck gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.networks.base import Network
from regard.networks.vision.cells import Read, expected, middles
from regard.networks.vision.detection_loss import Criterion, Losses, Teacher
from regard.tasks.boxes import Found, suppressed


class BoxHead(nn.Module):
    """The base of heads: a subclass writes `raw`, and says its ``bins``, 1 for distances themselves, and whether they
    are told beside the bins too."""

    bins: int
    direct: bool = False

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Maps of scores ``(b, classes, y, x)``, of distances by bins ``(b, 4 · bins, y, x)`` and, where they are told
        beside the bins, of distances ``(b, 4, y, x)``."""
        raise NotImplementedError

    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """``(b, classes, cells)`` before the sigmoid, ``(b, 4, cells)`` in cells: left, top, right, bottom, and their
        bins ``(b, 4, bins, cells)``."""
        scores, boxes, told = (None if each is None else each.flatten(2) for each in self.raw(x))
        assert scores is not None
        assert boxes is not None
        if self.bins == 1:
            return scores, boxes, None
        boxes = boxes.unflatten(1, (4, self.bins))
        return scores, expected(boxes) if told is None else told, boxes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(b, classes, cells)`` before the sigmoid and ``(b, 4, cells)`` in cells: left, top, right, bottom."""
        return self.read(x)[:2]


class Detector(Network):
    """The base of detectors: stages, pools over the coarsest map, a neck, and a head for each of its levels.

    A subclass makes ``stem``, ``stages``, ``pools``, ``neck`` and ``heads``, each a `BoxHead`, says the pixels from
    cell to cell of the levels in ``steps``, and by what it is trained in ``criterion``.

    Shapes: ``images (b, 3, y, x)`` of any height and width -> ``(b, cells, 4 + classes)``: the middle, the width and
    the height of the box in pixels, and probabilities.
    """

    steps: Sequence[int]
    stem: nn.Module
    stages: nn.ModuleList
    pools: nn.Module
    neck: nn.Module
    heads: nn.ModuleList
    criterion: Criterion

    def features(self, images: Tensor) -> list[Tensor]:
        """The maps of the four stages."""
        x, found = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return [*found[:-1], self.pools(x)]

    def read(self, images: Tensor) -> Read:
        """What every cell says: what a loss reads in training."""
        maps = list(self.neck(self.features(images)))
        found = [head.read(level) for head, level in zip(self.heads.children(), maps, strict=True)]  # pyright: ignore
        scores, sides, bins = zip(*found, strict=True)
        places = [step * middles(level) for level, step in zip(maps, self.steps, strict=True)]
        counts = tuple(len(each) for each in places)
        steps = torch.cat([each.new_full((len(each),), step) for each, step in zip(places, self.steps, strict=True)])
        told = None if bins[0] is None else torch.cat(bins, 3).permute(0, 3, 1, 2)
        direct = any(head.direct for head in self.heads.children())  # pyright: ignore
        both = (torch.cat(scores, 2).mT, torch.cat(sides, 2).mT)
        return Read(*both, told, direct, torch.cat(places), steps, counts, maps)

    def forward(self, images: Tensor) -> Tensor:
        read = self.read(images)
        low, high = read.boxes.split(2, -1)
        return torch.cat(((low + high) / 2, high - low, torch.sigmoid(read.scores)), 2)

    def loss(
        self, images: Tensor, kinds: Tensor, boxes: Tensor, first: bool = False, teacher: Teacher | None = None
    ) -> Losses:
        """What it is trained by: see `Criterion`, whose arguments these are."""
        return self.criterion(self.read(images), kinds, boxes, first, teacher)

    @torch.no_grad()
    def found(
        self,
        images: Tensor,
        least: float = 0.25,
        overlap: float = 0.45,
        several: bool = False,
        most: int = 300,
        candidates: int = 3000,
    ) -> list[Found]:
        """The choice among boxes, greedy non-maximum suppression of each class: boxes ``(n, 4)``, left, top, right,
        bottom in pixels, scores ``(n,)`` and classes ``(n,)`` of each image, the best first, on the CPU.

        Args:
            images: ``(b, 3, y, x)``. least: scores above it are looked at. overlap: boxes that overlap a better one of
                their class by more are left out. several: whether a cell may have several classes, else its best alone.
            most: boxes of an image. candidates: the best cells' boxes of an image that are compared.

        Raises:
            ValueError: shares outside of 0 and 1, fewer than one box.
        """
        if not 0 <= least <= 1 or not 0 <= overlap <= 1 or min(most, candidates) < 1:
            came = f"{least}, {overlap}, {most}, {candidates}"
            raise wrong("least, overlap, most, candidates", came, "shares of 0 to 1, numbers of 1 or more")
        read = self.read(images)
        return [
            tuple(each[:most] for each in suppressed(candidate(*own, least, several, candidates), overlap))  # type: ignore[misc]
            for own in zip(read.boxes.cpu(), torch.sigmoid(read.scores).cpu(), strict=True)
        ]


def candidate(boxes: Tensor, scores: Tensor, least: float, several: bool, most: int) -> Found:
    """The boxes of one image whose score is above the least, the best of them: ``boxes (cells, 4)``, ``scores (cells,
    classes)``."""
    if not several:
        sure, kinds = scores.max(1)
        scores = torch.zeros_like(scores).scatter(1, kinds[:, None], sure[:, None])
    cells, kinds = (scores > least).nonzero().T
    best = scores[cells, kinds].argsort(descending=True, stable=True)[:most]
    return boxes[cells[best]], scores[cells[best], kinds[best]], kinds[best]
