"""Attention on images: on feature maps, with fewer keys from a strided convolution, positions from a convolution."""

from __future__ import annotations

from torch import Tensor, nn

from regard.blocks.attention import Attention
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.projections.base import Grouped

Grid = tuple[int, int]


class SpatialReduction(Grouped):
    """Queries of every token, keys and values of summaries that a convolution makes of squares of tokens.

        q_h = x W^Q_h,   c' = norm(conv_{r, stride r}(c)),   k_g = c' W^K_g,   v_g = c' W^V_g

    Parameters: those of `Grouped`, and (r² width + 3) width. Keys: one for each r × r tokens; r = 1 is `Grouped`.

    Args:
        grid: rows and columns of tokens. ratio: r.

    Raises:
        ValueError: a ratio that does not divide the grid; in a call, another number of tokens.

    Papers: Wang et al. (PVT), arXiv 2102.12122; Chu et al. (Twins), 2104.13840.
    """

    def __init__(self, width: int, heads: int, grid: Grid, ratio: int) -> None:
        super().__init__(width, heads, heads, width // heads, width // heads)
        if ratio < 1 or grid[0] % ratio or grid[1] % ratio:
            raise wrong("ratio", str(ratio), f"a divisor of the grid's sides {grid}")
        self.grid, self.ratio = grid, ratio
        self.summary = nn.Conv2d(width, width, ratio, ratio) if ratio > 1 else None
        self.norm = nn.LayerNorm(width) if ratio > 1 else None

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.summary is None or self.norm is None:
            return super().forward(x, context)
        return super().forward(x, self.norm(flat(self.summary(image(context, self.grid)))))

    @property
    def parameter_count(self) -> int:
        extra = (self.ratio**2 * self.width + 3) * self.width if self.ratio > 1 else 0
        return super().parameter_count + extra

    @property
    def flops(self) -> int:
        """FLOPs for each token; a summary's matrix is read by one of r² tokens for each of its r² taps."""
        keys = 2 * self.width * 2 * self.width
        fewer = keys - keys // self.ratio**2
        return 2 * super().parameter_count - fewer + (2 * self.width**2 if self.ratio > 1 else 0)


class ConditionalPositions(nn.Module):
    """``x + conv(x)``: a depthwise 3 × 3 convolution, zero beyond the border, tells each token where it stands.

    Paper: Chu et al., arXiv 2102.10882.
    """

    def __init__(self, width: int, grid: Grid) -> None:
        super().__init__()
        self.grid, self.convolution = grid, nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        return x + flat(self.convolution(image(x, self.grid)))


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


def image(x: Tensor, grid: Grid) -> Tensor:
    """Tokens ``(b, n, width)`` as ``(b, width, rows, columns)``."""
    if x.shape[1] != grid[0] * grid[1]:
        raise wrong("x", f"{x.shape[1]} tokens", f"those of the grid {grid[0]} × {grid[1]}")
    return x.mT.unflatten(2, grid)


def flat(x: Tensor) -> Tensor:
    """`image` undone, for any grid."""
    return x.flatten(2).mT
