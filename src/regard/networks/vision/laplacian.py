"""Pyramids of an image and of what each halving loses, and the band along the edges of a map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.featuremap.resize import Size, resize

SIDE, SIGMA, BANDS = 7, 1.0, (17, 9, 5)
"""Of the Gaussian; sides of the bands along edges, fine to coarse."""


def smooth(x: Tensor, gain: float) -> Tensor:
    """``x (b, c, y, x)`` under a Gaussian of 7 × 7 cells, σ = 1, mirrored outside, times a number."""
    steps = torch.arange(SIDE, device=x.device, dtype=x.dtype) - SIDE // 2
    line = torch.exp(-steps.square() / (2 * SIGMA**2))
    line = line / line.sum()
    kernel = gain * (line[:, None] * line).expand(x.shape[1], 1, -1, -1)
    mode = "reflect" if min(x.shape[2:]) > SIDE // 2 else "replicate"
    return F.conv2d(F.pad(x, (SIDE // 2,) * 4, mode), kernel, groups=x.shape[1])


def reduced(x: Tensor) -> Tensor:
    """Every second cell of the smoothed map."""
    return smooth(x, 1.0)[:, :, ::2, ::2]


def expanded(x: Tensor, size: Size | None = None) -> Tensor:
    """A map of twice the rows and columns, or of ``size`` of them: cells with zeros between them, smoothed."""
    wide = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    wide[:, :, ::2, ::2] = x
    found = smooth(wide, 4.0)
    return found if size is None else found[:, :, : size[0], : size[1]]


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """The halved map, and what it loses: ``x − expanded(reduced(x))``."""
    half = reduced(x)
    return half, x - expanded(half, (x.shape[2], x.shape[3]))


def rebuilt(half: Tensor, lost: Tensor) -> Tensor:
    """`split` undone."""
    return expanded(half, (lost.shape[2], lost.shape[3])) + lost


def ellipse(side: int) -> list[tuple[int, int]]:
    """Rows below the middle and half of the width there, of an ellipse in so many cells a side, odd."""
    r = side // 2
    return [(dy, round(r * ((r * r - dy * dy) / (r * r)) ** 0.5)) for dy in range(-r, r + 1)]


def dilated(x: Tensor, side: int) -> Tensor:
    """The maximum within an ellipse around each cell."""
    found, rows, r = x, x.shape[2], side // 2
    for dy, half in ellipse(side):
        row = F.max_pool2d(x, (1, 2 * half + 1), 1, (0, half))
        found = torch.maximum(found, F.pad(row, (0, 0, r, r), value=float("-inf"))[:, :, r + dy : r + dy + rows])
    return found


def band(logits: Tensor, side: int) -> Tensor:
    """One where maximum and minimum within an ellipse differ by more than a half, zero elsewhere: along edges."""
    x = torch.sigmoid(logits)
    return ((dilated(x, side) + dilated(-x, side)) > 0.5).to(x.dtype)


def blend(coarse: Tensor, details: Sequence[Tensor]) -> Tensor:
    """A map of three times twice the rows and columns: ``expanded`` and, along its edges alone, the details of each
    level, which are given fine to coarse."""
    found = coarse
    for side, lost in zip(reversed(BANDS), reversed(details), strict=True):
        edges = resize(band(found, side), lost, "bilinear")
        found = expanded(found) + edges * lost
    return found
