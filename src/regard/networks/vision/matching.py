"""Which cells of a detector stand for which box in training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard.networks.vision.box_losses import likeness

EPS = 1e-9
GRID = 5.0
"""Steps to a side of the squares that `nearest` lays about cells."""


@dataclass(frozen=True)
class Matched:
    """What each cell has to say.

    Args:
        boxes: ``(b, cells, 4)`` in pixels. scores: ``(b, cells, classes)``, 0 to 1. there: ``(b, cells)``, False where
            a cell stands for nothing.
    """

    boxes: Tensor
    scores: Tensor
    there: Tensor


def within(places: Tensor, boxes: Tensor) -> Tensor:
    """Whether places ``(cells, 2)`` lie in boxes ``(b, n, 4)``: ``(b, n, cells)``."""
    away = torch.cat((places - boxes[:, :, None, :2], boxes[:, :, None, 2:] - places), -1)
    return away.amin(-1) > EPS


def to_one(takes: Tensor, shared: Tensor) -> Tensor:
    """Each cell that several boxes take ``(b, n, cells)`` is given to the one that overlaps its own box most."""
    several = takes.sum(1, keepdim=True) > 1
    best = torch.zeros_like(takes).scatter(1, shared.argmax(1, keepdim=True), True)
    return torch.where(several, best, takes)


def targets(takes: Tensor, kinds: Tensor, boxes: Tensor, weights: Tensor, classes: int) -> Matched:
    """What is matched, the score of its class weighed."""
    which, rows = takes.int().argmax(1), torch.arange(len(kinds), device=kinds.device)[:, None]
    there = takes.any(1)
    scores = torch.nn.functional.one_hot(kinds[rows, which].clamp(min=0), classes) * there[..., None]
    return Matched(boxes[rows, which], scores * weights[..., None], there)


@torch.no_grad()
def aligned(
    scores: Tensor,
    found: Tensor,
    places: Tensor,
    kinds: Tensor,
    boxes: Tensor,
    count: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
    kind: str = "iou",
    eps: float = EPS,
) -> Matched:
    """Task-aligned assignment: a box takes the cells inside of it that name its class and find it best.

        t = p^α I^β;   of those inside, the ``count`` largest;   q = t max(I) / max(t), both over the box's own cells

    p is the score of the box's class, I the overlap of the cell's box with it, `likeness` of a kind, at least zero. A
    cell that several boxes take stands for the one that its box overlaps most. The score that it has to say is q.

    Args:
        scores: ``(b, cells, classes)``, probabilities. found: the cells' boxes ``(b, cells, 4)``. places: ``(cells,
            2)``, their middles. kinds: ``(b, n)``, −1 for no box. boxes: ``(b, n, 4)``. count, alpha, beta, kind: see
            above. eps: of the overlap. Pixels everywhere.

    Paper: Feng et al., arXiv 2108.07755.
    """
    if not kinds.shape[1]:
        return Matched(torch.zeros_like(found), torch.zeros_like(scores), scores.new_zeros(scores.shape[:2]).bool())
    real = (kinds >= 0)[..., None]
    inside = within(places, boxes) & real
    shared = likeness(boxes[:, :, None], found[:, None], kind, eps).clamp(min=0)
    shared = shared * (real if kind == "iou" else inside)  # as in the authors' codes of the one and of the others
    sure = scores.mT.gather(1, kinds.clamp(min=0)[..., None].expand(-1, -1, scores.shape[1]))
    metric = sure.pow(alpha) * shared.pow(beta)
    best = (metric * inside).topk(min(count, metric.shape[2]), 2).indices
    takes = torch.zeros_like(inside).scatter(2, best, True) & inside
    takes = to_one(takes, shared)
    metric = metric * takes
    weights = metric * (shared * takes).amax(2, keepdim=True) / (metric.amax(2, keepdim=True) + EPS)
    return targets(takes, kinds, boxes, weights.amax(1), scores.shape[2])


@torch.no_grad()
def nearest(
    found: Tensor,
    places: Tensor,
    steps: Tensor,
    counts: tuple[int, ...],
    kinds: Tensor,
    boxes: Tensor,
    classes: int,
    count: int = 9,
) -> Matched:
    """Adaptive assignment: of the ``count`` cells of each level that are nearest to a box's middle, it takes those
    whose square of five steps overlaps it more than mean and standard deviation of them all, if they lie inside.

    The score that a cell has to say is the overlap of its own box.

    Args:
        found, places, kinds, boxes: see `aligned`. steps: ``(cells,)``, pixels from cell to cell. counts: cells of each
            level. classes: how many.

    Paper: Zhang et al. (ATSS), arXiv 1912.02424.
    """
    if not kinds.shape[1]:
        empty = found.new_zeros(*found.shape[:2], classes)
        return Matched(torch.zeros_like(found), empty, empty[..., 0].bool())
    half = GRID / 2 * steps[:, None]
    squares = torch.cat((places - half, places + half), -1)
    shared = likeness(boxes[:, :, None], squares, eps=EPS)
    away = ((boxes[:, :, None, :2] + boxes[:, :, None, 2:]) / 2 - places).norm(dim=-1)
    best, start = [], 0
    for part in away.split(counts, 2):
        best.append(part.topk(min(count, part.shape[2]), 2, largest=False).indices + start)
        start += part.shape[2]
    near = torch.cat(best, 2)
    own = shared.gather(2, near)
    most = own.mean(2, keepdim=True) + own.std(2, keepdim=True)
    takes, real = torch.zeros_like(shared, dtype=torch.bool).scatter(2, near, own > most), (kinds >= 0)[..., None]
    takes = to_one(takes & within(places, boxes) & real, shared * real)
    read = likeness(boxes[:, :, None], found[:, None], eps=EPS).clamp(min=0) * takes
    return targets(takes, kinds, boxes, read.amax(1), classes)
