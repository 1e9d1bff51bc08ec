"""Pyramids of saliency: rebuilt exactly, and details of a larger image along edges alone."""

from __future__ import annotations

import torch

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.maps import drawn
from regard.networks.vision.laplacian import blend, rebuilt, split


@measured(y=(1, 4, 37, 64), x=(3, 29, 48))
def pyramids(y: int, x: int) -> dict[str, float]:
    """Four halvings of a map in single precision and what they lose, put together again, against the map."""
    image = drawn(2, 3, y, x).float()
    half, lost = image, []
    for _ in range(4):
        half, less = split(half)
        lost.append(less)
    for less in reversed(lost):
        half = rebuilt(half, less)
    return {"apart": (half - image).abs().max().item()}


@measured()
def blended() -> dict[str, float]:
    """Of a disc's coarse saliency and noise as the finest details: the share of cells that they change, and how far
    from the disc's edge the farthest of them is, in cells of the map that the edges are found in."""
    steps = torch.arange(24, dtype=torch.float64) - 11.5
    coarse = (6 - (steps[:, None].square() + steps.square()).sqrt())[None, None] * 4
    details = [(n == 3) * drawn(1, 1, 24 * 2**n, 24 * 2**n) for n in (3, 2, 1)]
    change = (blend(coarse, details) - blend(coarse, [0 * each for each in details])).abs()[0, 0]
    fine = (torch.arange(192, dtype=torch.float64) - 8 * 11.5) / 2  # a cell stays at twice its place
    radius = (fine[:, None].square() + fine.square()).sqrt()
    changed = change > 1e-9
    return {"share": changed.double().mean().item(), "far": (radius[changed] - 24).abs().max().item()}


def is_of_edges(found: Figures) -> Finding:
    """Some cells change, and none farther than the ellipse reaches, 8 cells, and the 2 that the edge itself is wide."""
    share, far = found.one("share"), found.one("far")
    figure = f"details change {share:.0%} of the cells, the farthest {far:.1f} cells from the disc's edge"
    return Finding.of(figure, share > 0, far <= 10)
