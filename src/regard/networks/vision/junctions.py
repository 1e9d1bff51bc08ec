"""Junctions: three wedges that meet in a point, drawn into the patch around every pixel, and patches as one image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ZERO = 1e-12
"""Under roots, so that the point itself has a gradient."""


@dataclass(frozen=True)
class Junction:
    """Of every patch of a map.

    Args:
        angle: of the first boundary, in radians ``(b, 1, y, x)``. openings: of the wedges, 2π together
            ``(b, 3, y, x)``. vertex: where they meet, −1 to 1 across the patch, x before y ``(b, 2, y, x)``; it may lie
            outside.
    """

    angle: Tensor
    openings: Tensor
    vertex: Tensor

    @classmethod
    def of(cls, numbers: Tensor) -> Junction:
        """From seven numbers ``(b, 7, y, x)``: cosine and sine, three openings, vertex, each of any size."""
        turn = torch.tanh(numbers[:, :2])
        angle = torch.atan2(turn[:, 1:], turn[:, :1])
        shares = torch.sigmoid(numbers[:, 2:5])
        return cls(angle, 2 * math.pi * shares / shares.sum(1, keepdim=True), numbers[:, 5:])

    @property
    def boundaries(self) -> Tensor:
        """The angles of the three rays ``(b, 3, y, x)``."""
        return self.angle + F.pad(self.openings.cumsum(1)[:, :-1], (0, 0, 0, 0, 1, 0))

    def away(self, side: int) -> tuple[Tensor, Tensor]:
        """From the vertex to the pixels of the patch, x and y ``(b, 1, side, side, y, x)``."""
        steps = torch.linspace(-1, 1, side, dtype=self.vertex.dtype, device=self.vertex.device)
        x, y = self.vertex[:, :, None, None, None].unbind(1)
        return steps[:, None, None] - x, steps[:, None, None, None] - y

    def wedges(self, side: int, softness: float = 1e-4) -> Tensor:
        """How much each pixel belongs to each wedge ``(b, 3, side, side, y, x)``; a pixel's sum to one."""
        x, y = self.away(side)
        middle = (self.boundaries + self.openings / 2)[:, :, None, None]
        half = self.openings[:, :, None, None] / 2
        inside = x * middle.cos() + y * middle.sin() - half.cos() * far(x, y)
        soft = 0.5 + torch.atan(inside / softness) / math.pi
        return soft / soft.sum(1, keepdim=True)

    def distances(self, side: int) -> Tensor:
        """Pixels to the nearest ray ``(b, 1, side, side, y, x)``; a patch is ``side`` of them."""
        x, y = self.away(side)
        ray = self.boundaries[:, :, None, None]
        ahead = x * ray.cos() + y * ray.sin() > 0
        beside = (y * ray.cos() - x * ray.sin()).abs()
        return torch.where(ahead, beside, far(x, y)).amin(1, keepdim=True) * side / 2

    def lines(self, side: int, width: float = 1e-3) -> Tensor:
        """Near one on the rays, near zero elsewhere ``(b, 1, side, side, y, x)``."""
        x, y = self.away(side)
        ray, radius = self.boundaries[:, :, None, None], far(x, y)
        off = (x * ray.cos() + y * ray.sin() - radius) * radius
        return (1 / (1 + (off / width).square())).amax(1, keepdim=True)


def far(x: Tensor, y: Tensor) -> Tensor:
    """√(x² + y²)."""
    return (x.square() + y.square()).clamp(min=ZERO).sqrt()


def window(side: int, scale: int, like: Tensor) -> Tensor:
    """Ones ``(side, side)`` where a pixel lies in the square of ``scale`` pixels in the middle of a patch."""
    near = (torch.arange(side, device=like.device) - side // 2).abs() < scale / 2
    return (near[:, None] & near).to(like.dtype)


def patches(image: Tensor, side: int) -> Tensor:
    """The patch around every pixel that has one ``(b, c, side, side, y − side + 1, x − side + 1)``."""
    b, c, y, x = image.shape
    return F.unfold(image, side).view(b, c, side, side, y - side + 1, x - side + 1)


def folded(parts: Tensor) -> Tensor:
    """The sum of overlapping patches at every pixel ``(b, c, y, x)``: what `patches` is transposed."""
    b, c, side, _, rows, columns = parts.shape
    return F.fold(parts.reshape(b, c * side * side, rows * columns), (rows + side - 1, columns + side - 1), side)
