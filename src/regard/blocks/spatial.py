"""Attention on images: among the cells of feature maps."""

from __future__ import annotations

from torch import Tensor, nn

from regard.blocks.attention import Attention
from regard.core.errors import wrong
from regard.core.layout import Layout

Grid = tuple[int, int]


class NonLocal(nn.Module):
    """``x + attention(x)`` between the cells of a convolutional network's feature map, of any size.

    Around `Grouped` its projections are the 1 × 1 convolutions of the papers, without biases; nothing begins as zero.

    Shapes: ``x (b, width, rows, columns)`` -> the same. Cost: that of the attention over rows · columns tokens.

    Args:
        attention: bidirectional, of any mechanism; one that wants a grid is told the map's.

    Papers: Wang et al., arXiv 1711.07971, around ``softmax``; Shen et al., 1812.01243, around ``efficient``.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[2], x.shape[3])
        return x + image(self.attention(flat(x), Layout(grid=grid)), grid)


def patch_grid(sides: Grid, patch: int, name: str = "patch") -> Grid:
    """Rows and columns of square patches of an image; an error that names the argument if they do not divide it."""
    if patch < 1 or sides[0] % patch or sides[1] % patch:
        raise wrong(name, str(patch), f"a divisor of the sides {sides}")
    return sides[0] // patch, sides[1] // patch


def image(x: Tensor, grid: Grid) -> Tensor:
    """Tokens ``(b, n, width)`` as ``(b, width, rows, columns)``."""
    if x.shape[1] != grid[0] * grid[1]:
        raise wrong("x", f"{x.shape[1]} tokens", f"those of the grid {grid[0]} × {grid[1]}")
    return x.mT.unflatten(2, grid)


def flat(x: Tensor) -> Tensor:
    """`image` undone, for any grid."""
    return x.flatten(2).mT
