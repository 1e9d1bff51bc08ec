"""Features whose products are the exponential's Taylor series."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def series(x: Tensor, order: int) -> Tensor:
    """``[1, x, x⊗x / √2!, x⊗x⊗x / √3!, …]``: products of two are ``Σ_{n ≤ order} (x·y)ⁿ / n!``.

    Shapes: ``(…, d)`` -> ``(…, series_dim(d, order))``.
    """
    terms = [torch.ones_like(x[..., :1])]
    for n in range(1, order + 1):
        terms.append((terms[-1][..., :, None] * x[..., None, :]).flatten(-2) / math.sqrt(n))
    return torch.cat(terms, dim=-1)


def series_dim(dim: int, order: int) -> int:
    """``1 + d + d² + … + d^order``."""
    return sum(dim**n for n in range(order + 1))
