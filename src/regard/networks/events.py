"""Events in time: which moments stand for which, what a detector of them is trained by, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.errors import wrong
from regard.tasks.boxes import Found, softened, voted

EPS, SAME = 1e-8, 1e-3
"""What lengths are at least, and how much longer than the shortest an event may be that a moment stands for too."""


@dataclass(frozen=True)
class Moments:
    """What a detector says of the moments of its levels, one level after the other.

    Args:
        scores: ``(b, m, classes)`` before the sigmoid. away: ``(b, m, classes, 2)``, or ``(b, m, 1, 2)`` where classes
            are alike: how far its event begins before the moment and ends after it, in steps, zero or more. times:
            ``(m,)``, in moments of what goes in. steps: ``(m,)``, from one moment of its level to the next. kept:
            ``(b, m)`` bool, False in padding. levels: moments of each level.
    """

    scores: Tensor
    away: Tensor
    times: Tensor
    steps: Tensor
    kept: Tensor
    levels: tuple[int, ...]

    @property
    def spans(self) -> Tensor:
        """Start and end of every class's event ``(b, m, classes, 2)``, in moments of what goes in."""
        away = (self.steps[:, None, None] * self.away).expand(*self.scores.shape, 2)
        time = self.times[:, None]
        return torch.stack((time - away[..., 0], time + away[..., 1]), -1)


def assigned(
    moments: Moments, kinds: Tensor, spans: Tensor, ranges: Sequence[tuple[float, float]], radius: float
) -> tuple[Tensor, Tensor]:
    """What each moment has to say: its classes ``(b, m, classes)`` and the steps to both ends ``(b, m, 2)``.

    A moment stands for the shortest event that it lies in, less than ``radius`` steps from its middle, whose farther
    end is as far as its level's range says; and for the classes of all such events that are as short.

    Args:
        kinds: ``(b, n)``, −1 for none. spans: ``(b, n, 2)``, start and end. ranges: for each level, least and most.
    """
    bounds = torch.cat([spans.new_tensor(each).expand(n, 2) for each, n in zip(ranges, moments.levels, strict=True)])
    times, steps = moments.times[:, None], moments.steps[:, None]
    start, end = spans[:, None, :, 0], spans[:, None, :, 1]
    away, middle = torch.stack((times - start, end - times), -1), (start + end) / 2
    near = torch.maximum(middle - radius * steps, start), torch.minimum(middle + radius * steps, end)
    inside = (times > near[0]) & (times < near[1])
    far = away.amax(-1)
    takes = inside & (far >= bounds[:, :1]) & (far <= bounds[:, 1:]) & (kinds >= 0)[:, None]
    length = (end - start).expand_as(far).masked_fill(~takes, float("inf"))
    if not kinds.shape[1]:
        return torch.zeros_like(moments.scores), moments.scores.new_zeros(*moments.scores.shape[:2], 2)
    least, which = length.min(2, keepdim=True)
    alike = (takes & (length <= least + SAME)).to(moments.scores.dtype)
    known = F.one_hot(kinds.clamp(min=0), moments.scores.shape[2]).to(alike)
    distances = away.gather(2, which[..., None].expand(-1, -1, -1, 2))[:, :, 0] / steps
    return (alike @ known).clamp(max=1), distances


def shared(own: Tensor, wanted: Tensor) -> Tensor:
    """Intersection over union of events about one moment, by the distances to their ends ``(n, 2)``."""
    both = torch.minimum(own, wanted).sum(-1)
    return both / (own.sum(-1) + wanted.sum(-1) - both).clamp(min=EPS)


def focal(scores: Tensor, wanted: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """``−α_t (1 − p_t)^γ log p_t`` of scores before the sigmoid, α_t = α where something is wanted, 1 − α elsewhere.

    Paper: Lin et al., arXiv 1708.02002.
    """
    sure = torch.sigmoid(scores)
    right = sure * wanted + (1 - sure) * (1 - wanted)
    balance = alpha * wanted + (1 - alpha) * (1 - wanted)
    return balance * (1 - right).pow(gamma) * F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")


class EventCriterion:
    """What a detector of events is trained by, the sum over moments over a running mean n of how many stand for one.

        loss = (Σ focal I^w + Σ 1 − I + ((m − m') / hull)²) / n,   n ← 0.9 n + 0.1 max(1, moments that stand for one)

    I is the overlap of what a moment says with the event that it stands for, and 1 where it stands for none, m and m'
    are their middles. Where ends are told for all classes alike, w is 0.

    Args:
        ranges, radius: of `assigned`. norm: n at the start. power: w.
    """

    def __init__(
        self, ranges: Sequence[tuple[float, float]], radius: float = 1.5, norm: float = 100.0, power: float = 0.2
    ) -> None:
        self.ranges, self.radius, self.norm, self.power = tuple(ranges), radius, norm, power

    def __call__(self, moments: Moments, kinds: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
        """The losses of the classes and of the ends.

        Args:
            kinds: ``(b, n)`` of the events, −1 for none. spans: ``(b, n, 2)``, their ends, in moments of what went in.

        Raises:
            ValueError: kinds and spans of other shapes, or ranges of other levels.
        """
        if kinds.dim() != 2 or spans.shape != (*kinds.shape, 2) or len(kinds) != len(moments.scores):
            raise wrong("kinds, spans", f"{tuple(kinds.shape)}, {tuple(spans.shape)}", "(b, n), (b, n, 2)")
        if len(self.ranges) != len(moments.levels):
            raise wrong("ranges", f"of {len(self.ranges)} levels", f"of {len(moments.levels)}")
        wanted, distances = assigned(moments, kinds, spans, self.ranges, self.radius)
        wanted = wanted * moments.kept[..., None]
        there = wanted.amax(2) > 0
        self.norm = 0.9 * self.norm + 0.1 * max(1, int(there.sum()))
        told = focal(moments.scores, wanted) * moments.kept[..., None]
        if moments.away.shape[2] == 1:
            own, near = moments.away[there][:, 0], distances[there]
        else:
            own, near = moments.away[wanted > 0], distances[:, :, None].expand(-1, -1, wanted.shape[2], -1)[wanted > 0]
            overlap = torch.ones_like(told).masked_scatter(wanted > 0, shared(own, near))
            told = told * overlap.pow(self.power)
        hull = torch.maximum(own, near).sum(-1).clamp(min=EPS)
        apart = ((own[:, 1] - own[:, 0] - near[:, 1] + near[:, 0]) / 2 / hull).square()
        return told.sum() / self.norm, (1 - shared(own, near) + apart).sum() / self.norm


@torch.no_grad()
def chosen(
    moments: Moments,
    least: float = 0.001,
    candidates: int = 2000,
    shortest: float = 0.05,
    soft: float | None = 0.5,
    overlap: float = 0.1,
    last: float = 0.001,
    most: int = 2000,
    apart: bool = True,
    votes: float = 0.7,
) -> list[Found]:
    """The choice among events: boxes ``(n, 4)`` of height 1, from the start to the end, scores and classes of each
    sequence, the best first.

    Args:
        least: scores above it are looked at. candidates: the best of each level. shortest: length of an event. soft:
            σ of `softened`, None for greedy suppression. overlap: of greedy suppression. last: the least score then.
            most: events of a sequence. apart: whether classes are chosen from apart. votes: overlap of those by which
            events are moved, `voted`, where classes are not chosen from apart; 0 for none.
    """
    sure, found = torch.sigmoid(moments.scores) * moments.kept[..., None], []

    def weigh(near: Tensor) -> Tensor:
        return (near < overlap).to(near.dtype) if soft is None else torch.exp(-near.square() / soft)

    for scores, spans in zip(sure, moments.spans, strict=True):
        levels = zip(scores.split(moments.levels), spans.split(moments.levels), strict=True)
        parts = [candidate(*each, least, candidates, shortest) for each in levels]
        boxes, likely, kinds = (torch.cat(each) for each in zip(*parts, strict=True))
        rest = likely > last if soft is None else torch.ones_like(kinds, dtype=torch.bool)
        order, own = [], []
        for group in [kinds == kind for kind in kinds.unique()] if apart else [torch.ones_like(rest)]:
            rows = (group & rest).nonzero()[:, 0]
            places, sunk = softened(boxes[rows], likely[rows], weigh, last if soft is not None else 0.0)
            order.append(rows[places])
            own.append(sunk)
        rows, weighed = torch.cat([*order, kinds[:0]]), torch.cat([*own, likely[:0]])
        best = weighed.argsort(descending=True, stable=True)[:most]
        moved = boxes[rows] if apart or not votes else voted(boxes[rows], boxes, likely, votes)
        found.append((moved[best], weighed[best], kinds[rows[best]]))
    return found


def candidate(scores: Tensor, spans: Tensor, least: float, most: int, shortest: float) -> Found:
    """The best events of one level that are long enough: ``scores (m, classes)``, ``spans (m, classes, 2)``."""
    time, kinds = (scores > least).nonzero().T
    best = scores[time, kinds].argsort(descending=True, stable=True)[:most]
    start, end = spans[time[best], kinds[best]].unbind(-1)
    boxes = torch.stack((start, torch.zeros_like(start), end, torch.ones_like(end)), -1)
    long = end - start > shortest
    return boxes[long], scores[time[best], kinds[best]][long], kinds[best][long]
