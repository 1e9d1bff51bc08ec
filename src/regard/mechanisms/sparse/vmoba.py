"""Block attention for video: blocks of space and time by turns of layers, as many as a share of the scores needs."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits
from regard.mechanisms.sparse.routed import Routed
from regard.routers.shares import ScaledShare, Scope

Chunk = int | tuple[int, int] | tuple[int, int, int]


@published(
    "vmoba",
    family="sparse",
    row=171,
    title="VMoBA: Mixture-of-Block Attention for Video Diffusion Models",
    arxiv="2506.23858",
    year=2025,
    aliases=("video_mixture_of_block_attention",),
    fidelity="authors' code",
    claim=Claim(
        text="on smooth video grids three tenths of the scaled scores leave out at least 60% of all pairs at a cosine "
        "of 0.98 to dense attention",
        cells="routed.video",
        holds="routed.video_is_kept",
    ),
)
class VideoBlocks(Routed):
    """Each query attends to its own block and to the blocks of mean keys that it scores best, up to a share.

    See `regard.routers.shares.ScaledShare` for the choice. On a grid of time, height and width (``Layout.grid``) the
    blocks are, layer by layer in turn, so many frames, columns of cells through all frames, or boxes; elsewhere, runs
    of ``block`` tokens. Only bidirectional.

    Args:
        block: tokens in a block where there is no grid. share: τ, of the scaled scores. scope: whose scores they are a
            share of; the paper's is ``head_global``, the authors' code has ``query_head`` by default.
        chunks: by turns, frames (one number), height and width, or frames, height and width of a block on a grid.
        layer_index: of the layer, which says whose turn it is.

    Raises:
        ValueError: a share outside of (0, 1], an unknown scope; in a call, a grid that the chunk does not divide.

    Paper: Wu et al., arXiv 2506.23858.
    """

    traits = Traits(causal=False, cross=False, rows="one", sign="nonnegative", flops="at most")

    def __init__(
        self,
        block: int = 512,
        share: float = 0.25,
        scope: Scope = "query_head",
        chunks: Sequence[Chunk] = (),
        layer_index: int = 0,
    ) -> None:
        traits = self.traits
        super().__init__(ScaledShare(block, share, scope))
        self.traits = traits
        self.chunk = chunks[layer_index % len(chunks)] if chunks else None

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        if self.chunk is None or layout.grid is None:
            return super().rows(q, k, layout, rows, **signals)
        self.check(q, k, None, layout, signals)
        order, other = self.cut(layout, k)
        back = order.argsort()
        whole = other.map(q[:, :, order], k[:, :, order], False, slice(0, len(order)))
        return whole[:, :, back[rows]][..., back]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        if self.chunk is None or layout.grid is None:
            return super().forward(q, k, v, layout, **signals)
        self.check(q, k, v, layout, signals)
        order, other = self.cut(layout, k)
        queries, keys, values = (x[:, :, order] for x in (q, k, v))
        out = Routed.forward(other, queries, keys, values, Layout())
        return out[:, :, order.argsort()]

    def cut(self, layout: Layout, k: Tensor) -> tuple[Tensor, Routed]:
        """``(order (m,), attention over blocks)``: the cells of a grid block by block."""
        if not layout.regular:
            raise wrong("layout", "a grid with padding or packed documents", "whole grids: each cell is a token")
        grid, chunk = layout.grid or (), self.chunk
        cells: tuple[int, ...] = (chunk, *grid[1:]) if isinstance(chunk, int) else tuple(chunk or ())
        cells = (*grid[:1], *cells) if len(cells) == 2 else cells
        if len(grid) != 3 or len(cells) != 3 or any(size % cell for size, cell in zip(grid, cells, strict=True)):
            raise wrong("layout.grid", str(grid), f"frames, height and width that blocks of {cells} divide")
        places = torch.arange(k.shape[2], device=k.device).view(*grid)
        for axis, cell in enumerate(cells):
            places = places.unflatten(2 * axis, (-1, cell))
        order = places.permute(0, 2, 4, 1, 3, 5).flatten()
        router = self.router
        assert isinstance(router, ScaledShare)
        return order, VideoBlocks(prod(cells), router.share, router.scope)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("shares of a query", cls(4, 0.4), heads=4, kv_heads=2),
            Example("shares of a head", cls(33, 0.3, "head_global"), heads=3, kv_heads=3),
        ]
