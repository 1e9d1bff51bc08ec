"""Agent attention of a map: pooled queries gather the values, every query asks them, with biases of positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.spatial import flat, image
from regard.core.errors import wrong
from regard.networks.stages.steps.attention import Biased
from regard.networks.stages.steps.base import Step
from regard.projections.base import merge_heads

TABLE = 7
"""Rows and columns of the coarse bias, which is enlarged to the map."""


class Positions(nn.Module):
    """A bias of each agent and cell: of a coarse table, of the cell's row and of its column.

        B_h,a,(y,x) = enlarge(T)_h,a,y,x + R_h,a,y + C_h,a,x

    Args:
        heads, count: how many tables. grid: rows and columns of R and C, which are interpolated to those of the map.
    """

    def __init__(self, heads: int, count: int, grid: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(heads, count, TABLE, TABLE))
        self.rows, self.columns = (nn.Parameter(torch.empty(heads, count, grid)) for _ in range(2))
        for each in (self.table, self.rows, self.columns):
            nn.init.trunc_normal_(each, std=0.02)

    def forward(self, y: int, x: int) -> Tensor:
        """``(1, h, a, y x)``."""
        fitted = (F.interpolate(each, size, mode="linear") for each, size in ((self.rows, y), (self.columns, x)))
        rows, columns = fitted
        table = F.interpolate(self.table, (y, x), mode="bilinear")
        return (table + rows[..., None] + columns[:, :, None]).flatten(2)[None]


class Agents(Step):
    """Softmax attention of a few agents to all cells, and of all cells to the agents, with a convolution of the values.

        y = W (softmax(q gᵀ / √d + B_2ᵀ) softmax(g kᵀ / √d + B_1) v + conv(v)),   g = mean of q in each of √a × √a parts

    B are `Positions`. The mechanism without biases, convolution and grid is `regard.build("agent")`.

    Args:
        width: c. heads, bias: see `Attend`. count: a, a square. grid: rows and columns of maps that biases are of; they
            are interpolated to others.

    Raises:
        ValueError: a number of agents that is no square, a grid below one.

    Paper: Han et al., arXiv 2312.08874.
    """

    def __init__(self, width: int, heads: int, bias: bool = True, count: int = 49, grid: int = 14) -> None:
        super().__init__()
        self.side = math.isqrt(max(count, 0))
        if count < 1 or self.side**2 != count or grid < 1:
            raise wrong("count, grid", f"{count}, {grid}", "a square above zero, and at least 1")
        self.projection = Biased(width, heads, bias)
        self.gathering, self.asking = (Positions(heads, count, grid) for _ in range(2))
        self.near = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Agents ``(b, h, a, d)``, q, k and v."""
        q, k, v = self.projection(flat(x), flat(x))
        grid, b = x.shape[2:], x.shape[0]
        pooled = F.adaptive_avg_pool2d(q.mT.flatten(0, 1).unflatten(2, grid), self.side)
        return pooled.flatten(2).mT.unflatten(0, (b, -1)), q, k, v

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[2], x.shape[3])
        agents, q, k, v = self.parts(x)
        gathered = F.scaled_dot_product_attention(agents, k, v, self.gathering(*grid).to(q.dtype))
        seen = F.scaled_dot_product_attention(q, agents, gathered, self.asking(*grid).mT.to(q.dtype))
        near = flat(self.near(image(merge_heads(v), grid)))
        return image(self.projection.out(merge_heads(seen) + near), grid)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        agents, q, k, _ = self.parts(x)
        b, grid, scale = x.shape[0], x.shape[2:], q.shape[-1] ** -0.5
        paid = torch.softmax(agents @ k.mT * scale + self.gathering(*grid), -1)
        asked = torch.softmax(q @ agents.mT * scale + self.asking(*grid).mT, -1)
        return {name: each.reshape(b, -1, *grid) for name, each in (("gathers", paid), ("asked", asked.mT))}
