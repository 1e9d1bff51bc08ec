"""How a map is brought to another map's rows and columns, in one place."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Mode = Literal["nearest", "bilinear", "aligned"]
Size = tuple[int, int]


def resize(x: Tensor, like: Tensor | Size, mode: Mode = "nearest") -> Tensor:
    """``x (b, c, y', x')`` at the rows and columns of ``like``, a map or its size: odd ones are met exactly.

    Bilinear does not align the corners of the maps; ``aligned`` is bilinear and does, as some older code has it.
    """
    size = (like.shape[2], like.shape[3]) if isinstance(like, Tensor) else like
    if x.shape[2:] == size:
        return x
    if mode == "nearest":
        return F.interpolate(x, size, mode="nearest")
    return F.interpolate(x, size, mode="bilinear", align_corners=mode == "aligned")


def pooled(x: Tensor, like: Tensor | Size) -> Tensor:
    """``x`` averaged to the fewer rows and columns of ``like``, a map or its size."""
    size = (like.shape[2], like.shape[3]) if isinstance(like, Tensor) else like
    return x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)


def fitted(x: Tensor, like: Tensor | Size) -> Tensor:
    """``x`` at the rows and columns of ``like``: means where it has more rows, bilinear else."""
    rows = like.shape[2] if isinstance(like, Tensor) else like[0]
    return pooled(x, like) if x.shape[2] > rows else resize(x, like, "bilinear")


def halved(size: Size) -> Size:
    """The size of what a convolution or pool of stride 2 makes of an odd or even size: half, rounded up."""
    return -(-size[0] // 2), -(-size[1] // 2)
