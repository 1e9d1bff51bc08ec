"""Puppet-Master's layer: whose features a drag changes."""

from __future__ import annotations

import torch

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.networks.drags import Dragged


@measured(frame=(0, 2))
def reaches(frame: int) -> dict[str, float]:
    """By how much a point that is moved in one of four frames changes features of that frame and of others."""
    net = Dragged((4, 6, 6), 16, 2, 2, (8, 8), 8).double()
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(net.last.weight, std=0.1, generator=generator)
    x = torch.randn(1, 4, 6, 6, 16, generator=generator, dtype=torch.float64)
    drags = 0.4 * torch.rand(1, 4, 2, 4, generator=generator, dtype=torch.float64)
    text, moved = torch.randn(1, 3, 16, generator=generator, dtype=torch.float64), drags.clone()
    moved[:, frame, 0, 2:] += 0.5
    with torch.no_grad():
        apart = (net(x, moved, text) - net(x, drags, text)).abs().amax((0, 2, 3, 4))
    others = [apart[other].item() for other in range(4) if other != frame]
    return {"own": apart[frame].item(), "least": min(others), "most": max(others)}


def in_their_frame(found: Figures) -> Finding:
    """Of the third frame its own alone, of the first all: by more, or by no more, than rounding."""
    own, first = found("own"), found.one("least", frame=0)
    most = found.one("most", frame=2)
    third = f"moved in the third frame, its features by {own[1]:.0e}, others' by {most:.0e}"
    figure = f"{third}; in the first, all by {first:.0e}"
    return Finding.of(figure, min(own) > 1e-9, most < 1e-12, first > 1e-9)
