"""Boundary matching: proposals of events from starts, ends and a map of all spans, what class semantics feed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.tasks.boxes import Found, softened

EPS, SLOPE = 1e-5, 0.1
"""What logarithms are kept from zero by; what scores are multiplied by before the sigmoid."""


@dataclass(frozen=True)
class Proposals:
    """What is said of t moments and of spans that begin at each and go on for up to d more.

    Args:
        starts, ends: ``(b, t)``, probabilities. sure, near: ``(b, d, t)``, probabilities that a span is one, and its
            overlap with one.
    """

    starts: Tensor
    ends: Tensor
    sure: Tensor
    near: Tensor

    @property
    def there(self) -> Tensor:
        """Which spans end within the sequence ``(d, t)``."""
        d, t = self.sure.shape[1:]
        return torch.arange(d, device=self.sure.device)[:, None] + torch.arange(t, device=self.sure.device) < t


def sampling(moments: int, durations: int, samples: int) -> Tensor:
    """The matrix ``(t, samples · d · t)`` that reads of each span so many places, evenly from a quarter of its length
    before it to a quarter behind it, between two moments by both, nothing beyond the sequence or of spans that go on
    beyond it. Published code reads the moment before the first otherwise."""
    start, more = torch.arange(moments), torch.arange(durations)[:, None]
    low, high = start - more / 4, start + more + more / 4
    part = torch.linspace(0, 1, samples)[:, None, None]
    place = low + part * (high - low)
    weight = (1 - (place - torch.arange(moments)[:, None, None, None]).abs()).clamp(min=0)
    return (weight * (start + more < moments)).flatten(1)


def tower(inside: int, inner: int, out: int) -> nn.Sequential:
    """Convolutions of three moments, each with a relu."""
    return nn.Sequential(
        nn.Conv1d(inside, inner, 3, padding=1), nn.ReLU(), nn.Conv1d(inner, out, 3, padding=1), nn.ReLU()
    )


class BoundaryMatching(nn.Module):
    """The proposal network: features of moments, a gate of them, starts and ends of each, and a map of all spans.

        f = gate(base(x), r),   starts, ends = σ(0.1 W tower(f)),   sure, near = σ(0.1 V convolutions(samples of f))

    Shapes: ``x (b, features, t)``, ``semantics (b, classes, t)`` for a gate that reads them -> `Proposals`.

    Args:
        features: of x. moments: t. gate: what makes it of the channels of f, or of those and the semantics'; None for
            none. classes: channels of the semantics, 0 for none. width: of f. inner: of the convolutions. durations:
            d, t if None. samples: of each span. seed: of the weights.

    Raises:
        ValueError: a size below one. In a call, other moments, features or semantics.

    Papers: Lin et al. (BMN), arXiv 1907.09702; with class semantics Sridhar et al., 2109.02613.
    """

    def __init__(
        self,
        features: int,
        moments: int,
        gate: Callable[[int], nn.Module] | None = None,
        classes: int = 0,
        width: int = 128,
        inner: int = 256,
        durations: int | None = None,
        samples: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        durations = moments if durations is None else durations
        if min(features, moments, width, inner, durations, samples, classes + 1) < 1:
            came = f"{features}, {moments}, {classes}, {width}, {inner}, {durations}, {samples}"
            raise wrong("features, moments, classes, width, inner, durations, samples", came, "one or more of each")
        self.sizes, self.classes, self.durations, self.samples = (features, moments), classes, durations, samples
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.base = tower(features, 2 * width, width)
            self.gate = None if gate is None else gate(width + classes)
            self.ends = nn.Sequential(*tower(width, inner, inner), nn.Conv1d(inner, 2, 1))
            self.volume = nn.Conv3d(width, 4 * width, (samples, 1, 1))
            self.map = nn.Sequential(
                *(nn.ReLU(), nn.Conv2d(4 * width, width, 1), nn.ReLU()),
                *(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2, 1)),
            )
            for layer in self.modules():
                if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.bias is not None:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)
        self.register_buffer("places", sampling(moments, durations, samples), persistent=False)

    def forward(self, x: Tensor, semantics: Tensor | None = None) -> Proposals:
        wanted = None if not self.classes else (x.shape[0], self.classes, x.shape[2])
        if x.shape[1:] != self.sizes or (None if semantics is None else tuple(semantics.shape)) != wanted:
            came = f"{tuple(x.shape)}, {None if semantics is None else tuple(semantics.shape)}"
            raise wrong("x, semantics", came, f"(b, {self.sizes[0]}, {self.sizes[1]}), {wanted}")
        f = self.base(x)
        if self.gate is not None:
            given = f if semantics is None else torch.cat((f, semantics), 1)
            f = self.gate(given[..., None])[:, : f.shape[1], :, 0]
        starts, ends = torch.sigmoid(SLOPE * self.ends(f)).unbind(1)
        read = f @ self.get_buffer("places").to(f.dtype)
        read = read.unflatten(2, (self.samples, self.durations, self.sizes[1]))
        sure, near = torch.sigmoid(SLOPE * self.map(self.volume(read)[:, :, 0])).unbind(1)
        return Proposals(starts, ends, sure, near)


def matched(kinds: Tensor, spans: Tensor, moments: int, durations: int) -> tuple[Tensor, Tensor, Tensor]:
    """How much of each moment lies within 1.5 of a start and of an end ``(b, t)``, and each span's largest overlap with
    an event, from a moment to the end of the d-th after it, ``(b, d, t)``.

    Args:
        kinds: ``(b, n)``, −1 for none. spans: ``(b, n, 2)``, in moments.
    """
    time, real = torch.arange(moments, device=spans.device), kinds >= 0
    told = []
    for side in (0, 1):
        low, high = spans[..., side, None] - 1.5, spans[..., side, None] + 1.5
        within = (torch.minimum(high, time + 1.0) - torch.maximum(low, time + 0.0)).clamp(min=0)
        told.append((within * real[..., None]).amax(1) if kinds.shape[1] else spans.new_zeros(len(kinds), moments))
    low = time.expand(durations, -1).to(spans.dtype)
    high = low + 1 + torch.arange(durations, device=spans.device)[:, None]
    start, end = spans[..., 0, None, None], spans[..., 1, None, None]
    both = (torch.minimum(end, high) - torch.maximum(start, low)).clamp(min=0)
    overlap = both / (end - start + high - low - both) * real[..., None, None]
    empty = spans.new_zeros(len(kinds), durations, moments)
    return told[0], told[1], overlap.amax(1) if kinds.shape[1] else empty


def balanced(said: Tensor, wanted: Tensor, there: Tensor) -> Tensor:
    """The cross entropy of probabilities with whether something is wanted by more than a half, both answers counting as
    much as the other; the mean over what is ``there``."""
    yes = ((wanted > 0.5) & there).to(said.dtype)
    total = there.sum()
    ratio = total / yes.sum().clamp(min=1)
    no = 0.5 * ratio / (ratio - 1).clamp(min=EPS)
    loss = no * (ratio - 1) * yes * torch.log(said + EPS) + no * (1 - yes) * torch.log(1 - said + EPS)
    return -(loss * there).sum() / total


def proposal_loss(found: Proposals, kinds: Tensor, spans: Tensor, generator: torch.Generator) -> Tensor:
    """Of starts, ends and spans `balanced`, and 10 times the square of what overlaps are off.

    Overlaps are learned of all spans above 0.7, and of as many drawn from 0.3 to 0.7, and below.

    Args:
        kinds: ``(b, n)``, −1 for none. spans: ``(b, n, 2)``, in moments. generator: of what is drawn.
    """
    starts, ends, overlap = matched(kinds, spans, found.starts.shape[1], found.sure.shape[1])
    whole, there = torch.ones_like(starts, dtype=torch.bool), found.there.expand_as(overlap)
    loss = balanced(found.starts, starts, whole) + balanced(found.ends, ends, whole)
    high = (overlap > 0.7) & there
    chosen = high
    for part in ((overlap > 0.3) & (overlap <= 0.7) & there, (overlap <= 0.3) & there):
        share = (high.sum() / part.sum().clamp(min=1)).clamp(max=1)
        drawn = torch.rand(overlap.shape, generator=generator).to(overlap.device)
        chosen = chosen | (part & (drawn < share))
    off = ((found.near - overlap).square() * chosen).sum() / chosen.sum().clamp(min=1)
    wide = torch.where(overlap > 0.7, 1.0, 0.0)
    return loss + balanced(found.sure, wide, there) + 10 * off


@torch.no_grad()
def proposed(found: Proposals, sigma: float = 0.4, least: float = 1e-4, most: int = 100) -> list[Found]:
    """The choice among spans: boxes of height 1 from the start to the end, scores, zeros for kinds, the best first.

    Spans begin and end where a probability is a peak or more than half of the largest; their score is the product of
    start, end, ``sure`` and ``near``; then `softened`.
    """
    result = []
    for starts, ends, sure, near in zip(found.starts, found.ends, found.sure, found.near, strict=True):
        edges = [peaks(each) for each in (starts, ends)]
        d, t = sure.shape
        more, begin = (each.flatten() for each in torch.meshgrid(torch.arange(d), torch.arange(t), indexing="ij"))
        last = begin + more
        pick = last < t
        begin, more, last = (each[pick].to(sure.device) for each in (begin, more, last))
        keep = edges[0][begin] & edges[1][last]
        begin, more, last = begin[keep], more[keep], last[keep]
        scores = starts[begin] * ends[last] * sure[more, begin] * near[more, begin]
        one = torch.ones_like(scores)
        boxes = torch.stack((begin.to(scores), 0 * one, last + one, one), 1)
        places, sunk = softened(boxes, scores, lambda shared: torch.exp(-shared.square() / sigma), least)
        result.append((boxes[places[:most]], sunk[:most], torch.zeros_like(places[:most])))
    return result


def peaks(values: Tensor) -> Tensor:
    """Where values ``(t,)`` are above both neighbours, or above half of the largest."""
    padded = F.pad(values, (1, 1), value=float("inf"))
    return ((values > padded[:-2]) & (values > padded[2:])) | (values > values.max() / 2)
