"""What detectors of one stage are trained by: cells matched to boxes, their losses, and what a teacher adds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.errors import wrong
from regard.networks.vision.box_losses import between_bins, likeness, softened_divergence, varifocal
from regard.networks.vision.cells import Read
from regard.networks.vision.matching import Matched, aligned, nearest

LEAST = 0.01
"""The share of a teacher's losses that is left at the end."""


class Losses(NamedTuple):
    """The parts of a loss, weighed: of scores, of boxes, of bins, and of a teacher's maps."""

    scores: Tensor
    boxes: Tensor
    bins: Tensor
    maps: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum."""
        return self.scores + self.boxes + self.bins + self.maps


@dataclass(frozen=True)
class Criterion:
    """How cells are matched and what is summed.

    Args:
        count, alpha, beta, matched_by, eps: of `aligned`. kind: of the boxes' `likeness`. varied: whether scores are
            learned by `varifocal`, else by the cross entropy. scores, boxes, bins: the weights of the losses. least:
            what the sum of all wanted scores is divided by at least. images: whether the loss is times the batch.
    """

    count: int = 13
    alpha: float = 1.0
    beta: float = 6.0
    matched_by: str = "iou"
    kind: str = "giou"
    eps: float = 1e-10
    varied: bool = True
    scores: float = 1.0
    boxes: float = 2.5
    bins: float = 0.5
    least: float = 0.0
    images: bool = False

    def matched(self, read: Read, kinds: Tensor, boxes: Tensor, first: bool = False) -> Matched:
        """What each cell has to say: `nearest` in the first epochs, `aligned` later."""
        told = read.boxed(read.by_bins).detach()
        if first:
            return nearest(told, read.places, read.steps, read.counts, kinds, boxes, read.scores.shape[2])
        sure = torch.sigmoid(read.scores.detach())
        more = (self.count, self.alpha, self.beta, self.matched_by, 1e-9 if self.matched_by == "iou" else self.eps)
        return aligned(sure, told, read.places, kinds, boxes, *more)

    def __call__(
        self, read: Read, kinds: Tensor, boxes: Tensor, first: bool = False, teacher: Teacher | None = None
    ) -> Losses:
        """The losses of a batch, each over the sum of the scores that cells have to say.

        Args:
            read: of a detector. kinds: ``(b, n)`` of what is there, −1 for none. boxes: ``(b, n, 4)``, left, top,
                right, bottom in pixels. first: whether this is one of the first epochs, whose cells are matched by
                distance. teacher: what a larger network, or the same one before, says of the same images.

        Raises:
            ValueError: kinds and boxes of other shapes; a teacher of other classes, bins or cells.
        """
        if kinds.dim() != 2 or boxes.shape != (*kinds.shape, 4) or len(kinds) != len(read.scores):
            raise wrong("kinds, boxes", f"{tuple(kinds.shape)}, {tuple(boxes.shape)}", "(b, n), (b, n, 4)")
        match = self.matched(read, kinds, boxes, first)
        total = match.scores.sum()
        norm = total.clamp(min=self.least) if self.least else torch.where(total > 0, total, 1)
        wanted = match.scores.to(read.scores.dtype)
        told = (
            varifocal(read.scores, wanted)
            if self.varied
            else F.binary_cross_entropy_with_logits(read.scores, wanted, reduction="none")
        )
        scores, there = told.sum() / norm, match.there
        weight, steps = match.scores.sum(2)[there], read.steps.expand(len(there), -1)[there][:, None]
        places = read.places.expand(len(there), -1, -1)[there] / steps
        near = match.boxes[there] / steps
        away = read.scores.new_zeros(())
        for sides in [read.by_bins, read.sides] if read.direct else [read.sides]:
            own = sides[there]
            box = torch.cat((places - own[:, :2], places + own[:, 2:]), 1)
            away = away + ((1 - likeness(box, near, self.kind, self.eps)) * weight).sum() / norm
        bins = read.scores.new_zeros(())
        if read.bins is not None:
            wanted_sides = torch.cat((places - near[:, :2], near[:, 2:] - places), 1)
            bins = (between_bins(read.bins[there], wanted_sides) * weight).sum() / norm
        maps = read.scores.new_zeros(())
        if teacher is not None:
            more = teacher.losses(read, there, weight.sum() / norm)
            scores, bins, maps = scores + more[0], bins + more[1], more[2]
        times = len(kinds) if self.images else 1
        return Losses(self.scores * times * scores, self.boxes * times * away, self.bins * times * bins, times * maps)


@dataclass(frozen=True)
class Teacher:
    """Distillation: what another network says of the same images, which both compare by divergences.

        scores: T² Σ_cells Σ_classes q log(q / p), p and q the softmax over the classes of the probabilities / T
        bins: T² Σ_bins q log(q / p) of the bins at T, the mean over the sides of matched cells
        maps: Σ_levels Σ_cells q log(q / p) of each channel's softmax over its cells, the mean over channels

    All are multiplied by ``1 − 0.99 (1 − cos(π r)) / 2``, r the part of the training that is over.

    Args:
        read: what it says. over: r, 0 to 1. temperature: T. scores, bins, maps: the weights of the three, the first two
            times those of the criterion; 0 for none.

    Raises:
        ValueError: a part that is none, a temperature of zero.

    Source: huawei-noah/Efficient-Computing, whose weights of scores are 1, 1, 0.8 and 2 for N, S, M and L, and of maps
    10 where they are asked for.
    """

    read: Read
    over: float
    temperature: float = 20.0
    scores: float = 1.0
    bins: float = 1.0
    maps: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.over <= 1 or self.temperature <= 0:
            raise wrong("over, temperature", f"{self.over}, {self.temperature}", "0 to 1, above 0")

    def losses(self, own: Read, there: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of scores, bins and maps, weighed: ``there (b, cells)`` are the matched cells, ``share`` their part."""
        taught = self.read
        shapes = [tuple(each.scores.shape) for each in (own, taught)]
        if shapes[0] != shapes[1] or own.bins is None or taught.bins is None or own.bins.shape != taught.bins.shape:
            raise wrong("teacher", f"scores {shapes[1]}", f"scores {shapes[0]} and as many bins, more than one")
        left = 1 + (LEAST - 1) * (1 - math.cos(self.over * math.pi)) / 2
        both = [torch.sigmoid(each.scores) for each in (own, taught)]
        scores = softened_divergence(both[0], both[1].detach(), self.temperature).sum()
        bins = own.scores.new_zeros(())
        if there.any():
            bins = softened_divergence(own.bins[there], taught.bins[there].detach(), self.temperature).mean() * share
        maps = own.scores.new_zeros(())
        for mine, other in zip(own.maps, taught.maps, strict=True) if self.maps else ():
            maps = maps + softened_divergence(mine.flatten(2), other.flatten(2).detach(), 1.0).mean()
        return left * self.scores * scores, left * self.bins * bins, left * self.maps * maps
