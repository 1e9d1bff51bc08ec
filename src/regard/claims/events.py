"""Events in time: what bins give, and that padding is not read."""

from __future__ import annotations

from typing import Any

import torch

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.maps import apart, drawn, stirred
from regard.networks.tridet import TriDet

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
