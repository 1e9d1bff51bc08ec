"""Softmax attention with relative positions on a plane that queries score: BoTNet's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout, plane_of
from regard.core.mechanism import Example, Mechanism, Traits, check_sizes, masked_softmax, repeat_heads
from regard.kernels import packing

Plane = tuple[int, int]


@published(
    "relative_2d",
    family="vit",
    row=246,
    title="Bottleneck Transformers for Visual Recognition",
    arxiv="2101.11605",
    year=2021,
    aliases=("botnet", "bottleneck_attention"),
    fidelity="third-party code",
    claim=(
        Claim(
            "the scores of relative positions equal gathered ones, row by row and column by column",
            cells="stages.relative",
            holds="common.within(most=1e-9)",
        ),
        Claim(
            "with it in the last stage ResNet-50 loses a fifth of its parameters: 20.8 million",
            cells="stages.botnet",
            holds="stages.is_botnet",
        ),
    ),
)
class RelativePlane(Mechanism):
    """Softmax attention whose scores have a part for the offset of the cells, which the query decides.

        s_ij = s q_i · k_j + t q_i · (H[y_j − y_i] + W[x_j − x_i]),   A = softmax_j s_ij

    H ``(2 side − 1, d)`` and W are `rows` and `columns`, shared by the heads; on a map of another size they are
    interpolated to it, on a line W alone counts. t is s where ``scaled``, as in the paper's code, else 1.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: ``2 n m (d + e) + 2 n (rows + columns) d`` FLOPs a head; memory n m for each head.

    Args:
        head_dim: d. side: of the map that H and W are for. scaled: see above. scale: s, None for ``1 / sqrt(d)``.

    Raises:
        ValueError: a side below one; in a call, q of another d, a grid of three axes.

    Paper: Srinivas et al., arXiv 2101.11605.
    """

    traits = Traits(causal=False, cross=False, rows="one", sign="nonnegative")

    def __init__(self, head_dim: int = 16, side: int = 14, scaled: bool = True, scale: float | None = None) -> None:
        super().__init__()
        if side < 1:
            raise wrong("side", str(side), "at least 1")
        self.head_dim, self.scaled, self.scale = head_dim, scaled, scale
        self.rows_table = nn.Parameter(head_dim**-0.5 * torch.randn(2 * side - 1, head_dim))
        self.columns_table = nn.Parameter(head_dim**-0.5 * torch.randn(2 * side - 1, head_dim))

    @staticmethod
    def fitted(table: Tensor, size: int) -> Tensor:
        """The table for a side of ``size`` cells: itself, or interpolated between its offsets."""
        if table.shape[0] == 2 * size - 1 or not size:
            return table
        return F.interpolate(table.mT[None], 2 * size - 1, mode="linear", align_corners=True)[0].mT

    def placed(self, q: Tensor, plane: Plane) -> Tensor:
        """``(b, h, n, m)``: the scores of offsets, of a query for every cell."""
        own, parts = q.unflatten(2, plane), []
        tables = zip((self.rows_table, self.columns_table), plane, strict=True)
        for (table, size), product in zip(tables, ("bhyxd,yzd->bhyxz", "bhyxd,xzd->bhyxz"), strict=True):
            place = torch.arange(size, device=q.device)
            offsets = self.fitted(table, size).to(q.dtype)[place - place[:, None] + size - 1]
            parts.append(torch.einsum(product, own, offsets))
        if plane[0] == 1:  # a line: its one row says nothing
            parts[0] = torch.zeros_like(parts[0])
        both = (parts[0][..., :, None] + parts[1][..., None, :]).flatten(4, 5).flatten(2, 3)
        return both * (self.scale_of(q) if self.scaled else 1)

    def scale_of(self, q: Tensor) -> float:
        return q.shape[-1] ** -0.5 if self.scale is None else self.scale

    def support(
        self, n: int, m: int, layout: Layout, device: torch.device | str = "cpu", rows: slice | None = None
    ) -> Tensor:
        return layout.among_tokens(n, m, device, rows)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        n, m = q.shape[2], k.shape[2]
        if layout.regular:
            whole = self.whole(q[:, :, max(n - m, 0) :], k, plane_of(layout, m))
            return F.pad(whole, (0, 0, max(n - m, 0), 0))
        return packing.maps(lambda q, k, rows: self.whole(q, k, (1, k.shape[2]))[:, :, rows], q, k, layout)

    def whole(self, q: Tensor, k: Tensor, plane: Plane) -> Tensor:
        """A of the last queries of one document, which are at most as many as its keys."""
        n, m = q.shape[2], k.shape[2]
        scores = q @ repeat_heads(k, q.shape[1]).mT * self.scale_of(q)
        every = F.pad(q, (0, 0, m - n, 0))
        scores = scores + (self.placed(every, plane)[:, :, m - n :] if m else 0)
        return masked_softmax(scores, torch.ones_like(scores, dtype=torch.bool))

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        return self.weights(q, k, layout, **signals)[:, :, rows]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        if not layout.regular:
            return packing.per_sequence(self.run, q, k, v, layout)
        return self.run(q, k, v, plane_of(layout, k.shape[2]))

    def run(self, q: Tensor, k: Tensor, v: Tensor, plane: Plane | None = None) -> Tensor:
        """One document, by the fused operator where there is a query for each key."""
        plane, (n, m) = plane or (1, k.shape[2]), (q.shape[2], k.shape[2])
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        if n == m and m:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=self.placed(q, plane), scale=self.scale_of(q))
        whole = self.whole(q[:, :, max(n - m, 0) :], k, plane)
        return F.pad((whole @ v).to(q.dtype), (0, 0, max(n - m, 0), 0))

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        check_sizes(q, q.shape[1], self.head_dim)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        plane = plane_of(layout, shape.keys)
        cells = shape.n * (shape.keys * (shape.head_dim + shape.values) + sum(plane) * shape.head_dim)
        return Cost(2 * shape.batch * shape.heads * cells, shape.io_bytes, 0)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        d = Example.head_dim
        return [
            Example("side 7", cls(d, 7), heads=3, kv_heads=3),
            Example("side 3, unscaled, grouped", cls(d, 3, False), heads=4, kv_heads=2),
        ]
