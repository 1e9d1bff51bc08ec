"""Steps that compute on part of the channels: convolution of some, attention to or among the others."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from regard.blocks.spatial import flat, image
from regard.core.build import build_for
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.featuremap.gates.pat import PartialChannelAttention
from regard.networks.stages.norms import ChannelNorm
from regard.networks.stages.steps.attention import Biased
from regard.networks.stages.steps.base import Step
from regard.networks.stages.steps.convolution import activation_of
from regard.patterns.grid import coordinates


class PartialCells(nn.Module):
    """The first half of the channels weighed cell by cell, the other half by one matrix.

        y = [norm(x_1 ⊙ hard σ(w · x_1)), W norm(x_2)]

    Args:
        width: c.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.split = (width - width // 2, width // 2)
        first, second = self.split
        self.matrix = nn.Conv2d(second, second, 1, bias=False)
        self.score = nn.Conv2d(first, 1, 1, bias=False)
        self.first_norm, self.second_norm = nn.BatchNorm2d(first), nn.BatchNorm2d(second)

    def factor(self, x: Tensor) -> Tensor:
        """``(b, 1, y, x)``: what each cell's first channels are weighed by."""
        return nn.functional.hardsigmoid(self.score(x[:, : self.split[0]]))

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.split(self.split, 1)
        return torch.cat([self.first_norm(first * self.factor(x)), self.matrix(self.second_norm(second))], 1)


class PartialMLP(Step):
    """``W_2 act(norm(W_1 x))`` without biases, and `PartialCells` of it where ``cells``.

    Args:
        width: c. ratio: of the inner channels to c. activation: between. cells: see above.

    Paper: Huang et al. (PATNet), arXiv 2502.01303; its residual block of FasterNet: Chen et al., 2303.03667.
    """

    normed = False

    def __init__(self, width: int, ratio: float = 2, activation: str = "gelu", cells: bool = False) -> None:
        super().__init__()
        inner = int(width * ratio)
        self.first, self.norm = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.second, self.act = nn.Conv2d(inner, width, 1, bias=False), activation_of(activation)
        self.cells = PartialCells(width) if cells else None

    def inner(self, x: Tensor) -> Tensor:
        """What comes before `PartialCells`."""
        return self.second(self.act(self.norm(self.first(x))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return x if self.cells is None else self.cells(x)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        return {} if self.cells is None else {"cells": self.cells.factor(self.inner(x))}


class PartialChannels(Step):
    """A convolution of the first channels, attention to the others, and `PartialMLP` of both.

        y = mlp([conv_3×3(x_1), norm(gate(x_2))]),   gate the channel attention `pat_channel`

    Args:
        width: c. divisor: c over the channels of x_1. ratio, activation, cells: see `PartialMLP`.

    Raises:
        ValueError: a divisor that leaves no channel on one of the sides.

    Paper: Huang et al. (PATNet), arXiv 2502.01303.
    """

    normed = False

    def __init__(
        self, width: int, divisor: int = 4, ratio: float = 2, activation: str = "gelu", cells: bool = False
    ) -> None:
        super().__init__()
        self.split = parts(width, divisor)
        own, rest = self.split
        self.convolution = nn.Conv2d(own, own, 3, padding=1, bias=False)
        self.gate, self.norm = PartialChannelAttention(rest), nn.BatchNorm2d(rest)
        self.mlp = PartialMLP(width, ratio, activation, cells)

    def mixed(self, x: Tensor) -> Tensor:
        """What the perceptron reads."""
        own, rest = x.split(self.split, 1)
        return torch.cat([self.convolution(own), self.norm(self.gate(rest))], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.mixed(x))

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        return self.mlp.maps(self.mixed(x))


class PartialSelf(Step):
    """A convolution of the first channels, and attention among the cells of the others.

        y = [conv_3×3(x_1), W softmax(q · k / √d + B) v],   q, k, v of norm(x_2), without biases

    B_ij is one number for each head and distance of two cells, rounded: exact up to ``near``, by its logarithm beyond,
    and one for all from 8 ``near`` on (iRPE's Euclidean buckets).

    Args:
        width: c. divisor: c over the channels of x_1. count: heads. near: see above.

    Raises:
        ValueError: a divisor that leaves no channel on one of the sides, heads that do not divide the others.

    Papers: Huang et al. (PATNet), arXiv 2502.01303; Wu et al. (iRPE), 2107.14222.
    """

    normed = False

    def __init__(self, width: int, divisor: int = 4, count: int = 4, near: int = 20) -> None:
        super().__init__()
        self.split, self.near = parts(width, divisor), near
        own, rest = self.split
        self.convolution = nn.Conv2d(own, own, 3, padding=1, bias=False)
        self.projection = Biased(rest, count, False)
        self.mechanism, self.norm = build_for({}, "softmax"), ChannelNorm(rest, 1e-6)
        self.table = nn.Parameter(torch.zeros(count, 4 * near + 1))

    def places(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """The entries of the table for each pair of cells ``(n, n)``: those of distances, from its middle on."""
        y, x = coordinates(torch.arange(grid[0] * grid[1], device=device), grid)
        apart = ((y[:, None] - y).square() + (x[:, None] - x).square()).float().sqrt().round()
        near = self.near
        far = near + torch.log(apart.clamp(min=1) / near) / math.log(8) * near
        return 2 * near + torch.where(apart <= near, apart, far.round().clamp(max=2 * near)).long()

    def forward(self, x: Tensor) -> Tensor:
        own, rest = x.split(self.split, 1)
        grid, tokens = (x.shape[2], x.shape[3]), flat(self.norm(rest))
        layout = Layout(grid=grid, bias=self.table[None, :, self.places(grid, x.device)])
        seen = self.projection.merge(self.mechanism(*self.projection(tokens, tokens), layout))
        return torch.cat([self.convolution(own), image(seen, grid)], 1)


def parts(width: int, divisor: int) -> tuple[int, int]:
    """Channels of the convolution and the others.

    Raises:
        ValueError: none on one of the sides.
    """
    own = width // divisor if divisor > 0 else 0
    if not 0 < own < width:
        raise wrong("divisor", str(divisor), f"2 to the width {width}")
    return own, width - own
