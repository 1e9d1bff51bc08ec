"""How far attention reaches on a map: the mean distance of cells under A."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by
from regard.patterns.grid import coordinates


@published(
    "attention_distance",
    family="featuremap",
    kind="analysis",
    row=138,
    title="Remedying Target-Domain Astigmatism for Cross-Domain Few-Shot Object Detection",
    year=2026,
    fidelity="abstract only",
    claim=Claim(
        "windows of growing side attend further, all cells furthest, and sharper scores change that of none beyond its "
        "window",
        cells="vision_maps.distances",
        holds="vision_maps.grow_with_the_window",
    ),
)
@shown_by(lambda: [Sample("by hand", attention_distance, {"known": to_neighbours})])
def attention_distance(weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mean distance, in cells, between a query and the keys that it attends to: ``(…)`` of ``weights (…, n, n)``.

        d = Σ_i Σ_j A_ij ‖r_i − r_j‖ / n,   r the row and column of a cell

    Args:
        weights: A, whose rows sum to one. grid: rows and columns of the n cells.

    Raises:
        ValueError: a grid of another number of cells.

    What refines the attention, prototypes of classes and of the background and texts that part them, is
    `regard.networks.vision.periphery`, for any `Detector`.

    Papers: the above; Dosovitskiy et al. (ViT), arXiv 2010.11929, whose figure it is.
    """
    n = weights.shape[-1]
    if n != grid[0] * grid[1] or weights.shape[-2] != n:
        raise wrong("grid", str(grid), f"one of {n} cells, and a query for each")
    y, x = (each.double() for each in coordinates(torch.arange(n, device=weights.device), grid))
    far = torch.hypot(y[:, None] - y, x[:, None] - x)
    return (weights.double() * far).sum((-2, -1)) / n


def to_neighbours() -> tuple[Tensor, Tensor]:
    """Every cell of 2 × 3 to the first: 0, 1, 2 in its row, 1, √2, √5 below; and every cell to itself."""
    first, own = torch.zeros(6, 6), torch.eye(6)
    first[:, 0] = 1
    far = (0 + 1 + 2 + 1 + math.sqrt(2) + math.sqrt(5)) / 6
    return attention_distance(torch.stack([first, own])[None], (2, 3)), torch.tensor([[far, 0.0]])
