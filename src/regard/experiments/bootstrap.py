"""How sure a mean is: the bootstrap's interval."""

from __future__ import annotations

import torch
from torch import Tensor

DRAWS = 1000
"""Resamples."""


def bootstrap(values: Tensor, level: float = 0.95, seed: int = 0, draws: int = DRAWS) -> tuple[Tensor, Tensor]:
    """Ends of the bootstrap's percentile interval of the mean over the first axis.

    Means of so many samples as large as ``values (n, …)``, drawn from them with replacement; the interval holds the
    middle share ``level`` of them. For paired data, give the differences.

    Returns:
        (lower, upper), each ``(…)``; of one value, the value itself.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(values), (draws, len(values)), generator=generator).to(values.device)
    means = torch.stack([values[row].mean(0) for row in rows])
    return means.quantile((1 - level) / 2, dim=0), means.quantile((1 + level) / 2, dim=0)
