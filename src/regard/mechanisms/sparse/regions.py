"""Attention of each region of a map to the regions that it chooses by their means: bi-level routing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout, plane_of
from regard.core.mechanism import Example, accumulate_dtype, masked_softmax, repeat_heads
from regard.mechanisms.sparse.planar import Planar
from regard.patterns.grid import coordinates

Grid = tuple[int, int]


@published(
    "routed_regions",
    family="vit",
    row=277,
    title="BiFormer: Vision Transformer with Bi-Level Routing Attention",
    arxiv="2303.08810",
    year=2023,
    aliases=("bi_level_routing", "bra", "biformer"),
    fidelity="authors' code",
    claim=(
        Claim(
            "with all regions it is full attention; gathered keys give what masked ones do, at sides that regions "
            "divide or not",
            cells="stages.regions",
            holds="common.within(most=1e-9)",
        ),
        Claim(
            "with the best number of regions for each size the cost grows with the cells to the power of 4/3",
            cells="stages.regions_growth",
            holds="stages.is_four_thirds",
        ),
    ),
)
class RoutedRegions(Planar):
    """Softmax attention of the cells of each region to those of the regions whose mean keys fit its mean query best.

        A_ij = softmax over {j : region(j) ∈ C(region(i))} of s q_i · k_j
        C(r) = the ``topk`` regions r' with the largest Σ_h mean_r q_h · mean_r' k_h

    A grid is cut into ``regions`` a side, as far as it has cells, the last ones smaller; a line alike. All heads choose
    together, and there is no gradient through the choice. s is 1 / √(h d), of all heads together, as in the authors'
    code.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: ``2 n topk m / regions² (d + e)`` FLOPs a head on a plane, and the scores of pairs of regions.

    Args:
        topk: regions that each attends to. regions: a side. scale: s, None for the above.

    Raises:
        ValueError: a number below one; in a call, a grid of three axes.

    Paper: Zhu et al., arXiv 2303.08810. At sides that regions do not divide padding is no key and counts in no mean;
    the authors' code refuses such maps or lets zeros in.
    """

    def __init__(self, topk: int = 4, regions: int = 7, scale: float | None = None) -> None:
        super().__init__()
        if topk < 1 or regions < 1:
            raise wrong("topk, regions", f"{topk}, {regions}", "at least 1 each")
        self.topk, self.regions, self.scale = topk, regions, scale

    def tile(self, plane: Grid) -> Grid:
        """Rows and columns of a region."""
        return -(-plane[0] // self.regions), -(-plane[1] // self.regions)

    def region(self, plane: Grid, device: torch.device) -> tuple[Tensor, int]:
        """``(region of each cell (m,), how many there are)``."""
        y, x = coordinates(torch.arange(plane[0] * plane[1], device=device), plane)
        tile = self.tile(plane)
        across = -(-plane[1] // max(tile[1], 1)) if plane[1] else 0
        return y // max(tile[0], 1) * across + x // max(tile[1], 1), across * (-(-plane[0] // max(tile[0], 1)))

    @torch.no_grad()
    def choose(self, q: Tensor, k: Tensor, of: Tensor, count: int) -> Tensor:
        """``(b, regions, topk)``: the regions chosen by each, of cells of the regions ``of``."""
        wide = accumulate_dtype(q.dtype)
        queries, keys = (
            torch.zeros(*x.shape[:2], count, x.shape[3], dtype=wide, device=x.device)
            .index_add_(2, of, x.to(wide))
            .div_(torch.bincount(of, minlength=count).clamp(min=1)[:, None])
            for x in (q, repeat_heads(k, q.shape[1]))
        )
        scores = queries.transpose(1, 2).flatten(2) @ keys.transpose(1, 2).flatten(2).mT
        return scores.topk(min(self.topk, count), dim=-1).indices

    def scale_of(self, q: Tensor) -> float:
        return (q.shape[1] * q.shape[3]) ** -0.5 if self.scale is None else self.scale

    def whole(self, q: Tensor, k: Tensor, plane: Grid) -> Tensor:
        of, count = self.region(plane, q.device)
        chosen = torch.zeros(q.shape[0], count, count, dtype=torch.bool, device=q.device)
        chosen.scatter_(2, self.choose(q, k, of, count), True)
        seen = chosen[:, of][:, :, of][:, None]
        return masked_softmax(q @ repeat_heads(k, q.shape[1]).mT * self.scale_of(q), seen)

    def run(self, q: Tensor, k: Tensor, v: Tensor, plane: Grid) -> Tensor:
        """One document, whose keys are gathered region by region."""
        of, count = self.region(plane, q.device)
        chosen = self.choose(q, k, of, count)
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        queries, keys, values = (self.parted(x, plane) for x in (q, k, v))
        real = None
        if queries.shape[2] * queries.shape[3] != q.shape[2]:
            there = torch.ones(1, 1, q.shape[2], 1, dtype=torch.bool, device=q.device)
            real = self.parted(there, plane)[0, 0, :, :, 0][chosen].flatten(2).flatten(0, 1)[:, None, None]
        index = chosen[:, None, :, :, None, None]
        keys, values = (
            x[:, :, None]
            .expand(-1, -1, count, -1, -1, -1)
            .gather(3, index.expand(-1, x.shape[1], -1, -1, *x.shape[3:]))
            .flatten(3, 4)
            for x in (keys, values)
        )
        queries, keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (queries, keys, values))
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=real, scale=self.scale_of(q))
        return self.joined(out.unflatten(0, (q.shape[0], count)).transpose(1, 2), plane)

    def parted(self, x: Tensor, plane: Grid) -> Tensor:
        """Cells ``(b, h, m, d)`` as ``(b, h, regions, cells of one, d)``, zeros where the map ends."""
        tile = self.tile(plane)
        more = [-size % side for size, side in zip(plane, tile, strict=True)]
        x = F.pad(x.unflatten(2, plane), (0, 0, 0, more[1], 0, more[0]))
        x = x.unflatten(3, (-1, tile[1])).unflatten(2, (-1, tile[0])).transpose(3, 4)
        return x.flatten(4, 5).flatten(2, 3)

    def joined(self, x: Tensor, plane: Grid) -> Tensor:
        """`parted` undone."""
        tile = self.tile(plane)
        down = -(-plane[0] // tile[0])
        x = x.unflatten(3, tile).unflatten(2, (down, -1)).transpose(3, 4)
        return x.flatten(4, 5).flatten(2, 3)[:, :, : plane[0], : plane[1]].flatten(2, 3)

    def pairs(self, m: int, layout: Layout) -> int:
        """The most pairs of cells that see each other."""
        plane = plane_of(layout, m)
        tile = self.tile(plane)
        count = math.prod(-(-size // side) for size, side in zip(plane, tile, strict=True)) if m else 0
        return count * min(self.topk, count) * (tile[0] * tile[1]) ** 2

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        plane = plane_of(layout, shape.keys)
        count = math.prod(-(-size // side) for size, side in zip(plane, self.tile(plane), strict=True))
        scores = 2 * count * count * shape.head_dim
        cells = 2 * self.pairs(shape.keys, layout) * (shape.head_dim + shape.values)
        return Cost(shape.batch * shape.heads * (scores + cells), shape.io_bytes, 0)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("2 of 7", cls(2), heads=3, kv_heads=3),
            Example("1 of 5, grouped", cls(1, 5), heads=4, kv_heads=2),
            Example("all of 3", cls(3, 3)),
        ]
