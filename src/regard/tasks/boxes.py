"""Boxes that are found beside those that are there: overlaps, suppression, average precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Found = tuple[Tensor, Tensor, Tensor]
"""Of one image: boxes ``(n, 4)``, scores ``(n,)`` and kinds ``(n,)``."""


def areas(boxes: Tensor) -> Tensor:
    """Of boxes ``(…, 4)``: left, top, right, bottom."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes that broadcast, 0 where both are empty."""
    both = torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])
    shared = both.clamp(min=0).prod(-1)
    return shared / (areas(one) + areas(other) - shared).clamp(min=1e-9)


def suppressed(found: Found, most: float = 0.5) -> Found:
    """Without boxes that overlap one of the same kind and a higher score by more than ``most``, the best first."""
    boxes, scores, kinds = (each[found[1].argsort(descending=True)] for each in found)
    beside = (overlaps(boxes[:, None], boxes[None]) > most) & (kinds[:, None] == kinds[None])
    keep = torch.ones(len(boxes), dtype=torch.bool)
    for place in range(len(boxes)):
        if keep[place]:
            keep[place + 1 :] &= ~beside[place, place + 1 :]
    return boxes[keep], scores[keep], kinds[keep]


def softened(
    boxes: Tensor, scores: Tensor, weigh: Callable[[Tensor], Tensor], least: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Soft suppression: takes the box of the best score again and again, the others' scores times what their overlap
    with it weighs; those below ``least`` are left out, as are those of no weight.

    Args:
        boxes: ``(n, 4)``. scores: ``(n,)``, above zero. weigh: overlaps -> weights.

    Returns:
        The places of those that are taken, in their order, and their scores when they were.

    Paper: Bodla et al., arXiv 1704.04503, whose weight is exp(−overlap² / σ).
    """
    places, left = torch.arange(len(boxes), device=boxes.device), scores.clone()
    taken, told = [], []
    while len(places):
        best = int(left.argmax())
        taken.append(places[best])
        told.append(left[best])
        left = left * weigh(overlaps(boxes[places], boxes[places[best]]))
        left[best] = 0
        stay = (left >= least) & (left > 0)
        places, left = places[stay], left[stay]
    if not taken:
        return places, left
    return torch.stack(taken), torch.stack(told)


def voted(boxes: Tensor, every: Tensor, scores: Tensor, overlap: float) -> Tensor:
    """Boxes ``(n, 4)`` moved to the mean of all those that overlap them by ``overlap`` at least, by their scores.

    Args:
        every, scores: ``(m, 4)`` and ``(m,)`` of all boxes.
    """
    weights = (overlaps(boxes[:, None], every[None]) >= overlap) * scores
    return weights @ every / weights.sum(1, keepdim=True)


def average_precision(
    found: Sequence[Found], kinds: Sequence[Tensor], boxes: Sequence[Tensor], kind: int, overlap: float = 0.5
) -> float:
    """The area under precision over recall of one kind, each precision the best at this recall or more.

    A box is right that overlaps one of the kind, which no better one has taken, by ``overlap`` at least.

    Args:
        found: of each image. kinds, boxes: that are there, ``(n,)`` and ``(n, 4)`` of each image; kinds below zero are
            none.

    Returns:
        0 to 1; NaN where there is none of the kind.
    """
    right, scores, there = [], [], 0
    for (own, sure, what), real, places in zip(found, kinds, boxes, strict=True):
        wanted = places[real == kind]
        there += len(wanted)
        chosen = what == kind
        order = sure[chosen].argsort(descending=True)
        right += taken(own[chosen][order], wanted, overlap)
        scores.append(sure[chosen][order])
    if not there:
        return float("nan")
    order = torch.cat(scores).argsort(descending=True, stable=True)
    hits = torch.tensor(right, dtype=torch.float64)[order].cumsum(0)
    if not len(hits):
        return 0.0
    precision = (hits / torch.arange(1, len(hits) + 1)).flip(0).cummax(0).values.flip(0)
    return (precision * torch.diff(hits, prepend=hits.new_zeros(1))).sum().item() / there


def taken(found: Tensor, wanted: Tensor, overlap: float) -> list[bool]:
    """For each box, the best first, whether it takes the wanted one that it overlaps most and that is still free."""
    free, right = torch.ones(len(wanted), dtype=torch.bool), []
    for box in found:
        shared = torch.where(free, overlaps(box, wanted), -1.0)
        right.append(bool(len(wanted)) and shared.max().item() >= overlap)
        if right[-1]:
            free[shared.argmax()] = False
    return right
