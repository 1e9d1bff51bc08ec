"""Events in time: what bins give, that padding is not read, and how close to their ends events are found."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.maps import apart, drawn, stirred
from regard.networks.tridet import TriDet
from regard.tasks.boxes import average_precision
from regard.train.fit import Recipe, fit

BINS, LEVELS, LENGTH = 6, 3, 32


def small() -> Any:
    """A network of three halvings, all of its parameters moved."""
    torch.manual_seed(0)
    return stirred(TriDet(5, 3, 16, 7, LEVELS, BINS, 3, 1.5))


@measured(first=(0, 2, 6), second=(0, 3, 6))
def expected(first: int, second: int) -> dict[str, float]:
    """The largest error of both distances at every level where two bins are alike and all others are out."""
    net, count = small(), BINS + 1
    last = net.moments.last
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
        for scale in net.scales:
            scale.scale.fill_(1.0)
        for k in (first, second):
            last.bias[BINS - k] = last.bias[count + k] = 1e5
        for tower in (net.starts, net.ends):
            for parameter in tower.last.parameters():
                parameter.zero_()
        found = net(drawn(2, 5, LENGTH))
    want, sizes = (first + second) / 2, [LENGTH // 2**level for level in range(LEVELS + 1)]
    worst = 0.0
    for level, part in enumerate(found.split(sizes, 1)):
        time = 2.0**level * torch.arange(sizes[level])[:, None]
        both = torch.stack((time - 2**level * want, time + 2**level * want), -1).double()
        worst = max(worst, apart(part[..., 1:], both.expand_as(part[..., 1:])))
    return {"apart": worst}


def is_exact(found: Figures) -> Finding:
    """To rounding, in every case."""
    worst = max(found("apart"))
    return Finding.of(f"to {worst:.0e} in {len(found.rows)} pairs of bins", worst < 1e-9)


@measured(length=(5, 17, 24, 29))
def padded(length: int) -> dict[str, float]:
    """What is kept of a sequence beside a longer one, with noise behind it, against the sequence alone."""
    net, x = small(), drawn(2, 5, LENGTH)
    with torch.no_grad():
        both = net.features(x, torch.tensor([length, LENGTH]))
        alone = net.features(x[:1, :, :length])
        pairs = zip(both, alone, strict=True)
        features = max(apart(one[:1, :, : other.shape[2]], other) for (one, _), (other, _) in pairs)
        sizes = [[part.shape[2] for part, _ in each] for each in (both, alone)]
        long, short = net(x, torch.tensor([length, LENGTH]))[:1], net(x[:1, :, :length])
        events = zip(long.split(sizes[0], 1), short.split(sizes[1], 1), strict=True)
        read = max(apart(one[:, : other.shape[1]], other) for one, other in events)
        return {"apart": max(features, read)}


FEATURES, MOMENTS, KINDS, EVENTS, UNSEEN = 12, 64, 3, 4, 128


def streams(count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noise ``(count, features, moments)`` with an event in some of its quarters, whose kind shifts a third of the
    features and fades in over two moments at both ends: kinds ``(count, 4)``, −1 for none, and spans."""
    kinds = torch.randint(-1, KINDS, (count, EVENTS), generator=generator)
    quarter = MOMENTS / EVENTS
    length = 3 + (quarter - 4) * torch.rand(count, EVENTS, generator=generator)
    start = quarter * torch.arange(EVENTS) + (quarter - 1 - length) * torch.rand(count, EVENTS, generator=generator)
    spans, time = torch.stack((start, start + length), -1), torch.arange(MOMENTS)
    inside = torch.minimum(time - spans[..., :1], spans[..., 1:] - time).div(2).add(0.5).clamp(0, 1)
    shown = torch.nn.functional.one_hot(kinds + 1, KINDS + 1)[..., 1:].float().repeat_interleave(FEATURES // KINDS, -1)
    noise = torch.randn(count, FEATURES, MOMENTS, generator=generator)
    return noise + torch.einsum("bet,bef->bft", inside, shown), kinds, spans


@quick(seed=[0], steps=[20])
@measured(bins=(16, 0), seed=range(3), steps=[250])
def trained(bins: int, seed: int, steps: int) -> dict[str, float]:
    """The mean average precision over kinds of unseen streams, an overlap of 0.7 being right; 0 bins for distances that
    are told as they are."""
    net = TriDet(FEATURES, KINDS, 32, 48, 3, bins, 1, 5.0, seed)

    def loss(model: Any, generator: Generator) -> Tensor:
        x, kinds, spans = streams(16, generator)
        return sum(model.loss(x, kinds, spans), x.new_zeros(()))

    fit(net, loss, Recipe(steps, 2e-3, seed=seed))
    x, kinds, spans = streams(UNSEEN, Generator().manual_seed(1_000 + seed))
    found = net.eval().found(x, candidates=40)
    boxes = torch.stack((spans[..., 0], 0 * spans[..., 0], spans[..., 1], 0 * spans[..., 0] + 1), -1)
    every = [average_precision(found, list(kinds), list(boxes), kind, 0.7) for kind in range(KINDS)]
    return {"precision": sum(every) / len(every)}


def is_closer(found: Figures) -> Finding:
    """With bins the mean over the seeds is above that of distances as they are."""
    own, other = (found("precision", bins=count) for count in (16, 0))
    figure = f"{', '.join(f'{each:.1%}' for each in own)}, without bins {', '.join(f'{each:.1%}' for each in other)}"
    return Finding.of(figure, sum(own) / len(own) > sum(other) / len(other))
