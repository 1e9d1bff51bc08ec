"""Ultra3D: the cells that an object fills, read from latents, and blocks of voxels that know their parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from regard.blocks.attention import Attention
from regard.blocks.block import Block
from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.networks.base import Network
from regard.projections.base import Grouped

TITLE = "Ultra3D: Efficient and High-Fidelity 3D Generation with Part Attention"


def projected(voxels: Tensor, cameras: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(b, n, views)`` int64: the image token that each voxel falls on in each view, −1 where it falls on none.

        [x w, y w, w] = P [voxel, 1],   token = view · rows · columns + ⌊y⌋ columns + ⌊x⌋

    Args:
        voxels: ``(b, n, 3)``, their middles. cameras: ``(b, views, 3, 4)``, P, which gives x in columns and y in rows
            of tokens. grid: rows and columns of a view's tokens.

    What stands in front of a voxel does not hide it; what lies behind the camera, w ≤ 0, falls on no token.
    """
    rows, columns = grid
    points = torch.cat([voxels, torch.ones_like(voxels[..., :1])], -1)
    x, y, depth = torch.einsum("bvij,bnj->bnvi", cameras, points).unbind(-1)
    ahead = depth > 0
    column, row = ((part / depth.where(ahead, 1)).floor() for part in (x, y))
    falls = ahead & (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    view = torch.arange(cameras.shape[1], device=voxels.device)
    token = (view * rows + row.where(falls, 0).long()) * columns + column.where(falls, 0).long()
    return token.where(falls, -1)


def told_by_parts(parts: Tensor, tokens: Tensor, count: int) -> Tensor:
    """``(b, n, count)`` bool: the image tokens that any voxel of a voxel's own part falls on.

    Args:
        parts: ``(b, n)`` int, the part of each voxel. tokens: ``(b, n, views)``, of `projected`. count: of image
            tokens, over all views.
    """
    falls = torch.zeros(*parts.shape, count + 1, device=parts.device)
    falls = falls.scatter_(2, tokens.where(tokens >= 0, count), 1.0)[..., :count]
    return ((parts[:, :, None] == parts[:, None]).float() @ falls) > 0


@published(
    "part_voxels",
    family="generate",
    kind="network",
    row=75,
    title=TITLE,
    arxiv="2507.17745",
    year=2025,
    aliases=("part_cross_attention",),
    fidelity="hand values",
    claim=(
        Claim(
            "voxels sorted by part give what the block-diagonal mask of parts and the mask of their image tokens do",
            cells="part_voxels.masked",
            holds="common.within(most=1e-12)",
        ),
        Claim(
            "an image token changes the voxels of the parts that fall on it, and no others",
            cells="part_voxels.reaches",
            holds="part_voxels.its_parts",
        ),
    ),
)
class PartVoxels(Network):
    """Blocks of voxels that attend within their own part, and to the image tokens that this part falls on.

        x ← x + softmax(q kᵀ / √d + M) v,             M_ij = 0 if part_i = part_j, else −∞
        x ← x + softmax(q K(image)ᵀ / √d + C) V(image),   C_ij = 0 if a voxel of part_i falls on token j, else −∞

    then the block's network. Voxels are sorted by part, so that self-attention is that of packed sequences, of
    Σ n_p² pairs.

    Shapes: ``x (b, n, width), parts (b, n) int64, images (b, m, width), tokens (b, n, views) int64`` -> as x.
    ``tokens`` are image tokens by number, −1 for none: `projected`. A part that falls on none is told nothing.

    Args:
        width, heads, depth, inner: of the blocks. seed: of the weights.

    Raises:
        ValueError: heads that do not divide the width; in a call, other shapes, tokens that are none.

    Paper: Chen et al., arXiv 2507.17745, which publishes no code; the voxels come from `CoarseLayout`.
    """

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 2, inner: int = 128, seed: int = 0) -> None:
        super().__init__()
        sizes = Sizes.even(width, heads)

        def attention() -> Attention:
            return Attention(build("softmax"), Grouped(sizes))

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.blocks = nn.ModuleList(Block(attention(), width, inner, attention()) for _ in range(depth))

    def forward(self, x: Tensor, parts: Tensor, images: Tensor, tokens: Tensor) -> Tensor:
        if x.dim() != 3 or tuple(parts.shape) != tuple(x.shape[:2]):
            raise wrong("parts", f"shape {tuple(parts.shape)}", f"one for each voxel of {tuple(x.shape)}")
        if tokens.dim() != 3 or tuple(tokens.shape[:2]) != tuple(x.shape[:2]):
            raise wrong("tokens", f"shape {tuple(tokens.shape)}", f"{tuple(x.shape[:2])} and views")
        if tokens.numel() and not -1 <= int(tokens.min()) <= int(tokens.max()) < images.shape[1]:
            raise wrong("tokens", f"{int(tokens.min())} to {int(tokens.max())}", f"-1 to {images.shape[1] - 1}")
        order = parts.argsort(dim=1, stable=True)
        sorted_parts = parts.gather(1, order)
        x, back = x.take_along_dim(order[..., None], 1), order.argsort(1)
        own = Layout(segments=sorted_parts)
        told = told_by_parts(sorted_parts, tokens.take_along_dim(order[..., None], 1), images.shape[1])
        for block in self.blocks:
            x = block(x, own, images, Layout(mask=told[:, None]))
        return x.take_along_dim(back[..., None], 1)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def draw(batch: int, seed: int) -> tuple[Tensor, ...]:
            generator = Generator().manual_seed(seed)
            x, images = (torch.randn(batch, size, 8, generator=generator) for size in (13, 6))
            parts = torch.randint(4, (batch, 13), generator=generator)
            return x, parts, images, torch.randint(-1, 6, (batch, 13, 2), generator=generator)

        given: dict[str, Any] = {"inputs": draw, "output": (13, 8)}
        return [Sample("four parts", cls(8, 2, 2, 12), given)]


@published(
    "coarse_layout",
    family="generate",
    kind="network",
    row=75,
    title=TITLE,
    arxiv="2507.17745",
    year=2025,
    aliases=("vecset_layout",),
    fidelity="hand values",
    claim=Claim(
        "cells of drawn balls are read from sets of 32 latents with an intersection over union of 0.8 or more",
        cells="part_voxels.cells_of_balls",
        holds="part_voxels.are_read",
    ),
)
class CoarseLayout(Network):
    """Whether each cell of a coarse grid is filled, read by its middle from a set of latents.

        z ← blocks(z),   logit_c = w · softmax(Q(p_c) K(z)ᵀ / √d) V(z)

    p_c are sines and cosines of the cell's middle in [−1, 1]³, of frequencies π 2^k, and the middle itself.

    Shapes: ``z (b, latents, width)`` -> ``(b, side³)``, cells in the order x, y, z. `voxels` gives those above 0.

    Args:
        side: of the grid. width, heads, depth, inner: of the latents' blocks. octaves: k from 0 on. seed: of the
            weights.

    Raises:
        ValueError: heads that do not divide the width, no cells or octaves.

    Paper: Chen et al., arXiv 2507.17745, whose first stage generates the latents by diffusion; set and reading are
    those of Zhang et al. (3DShape2VecSet), arXiv 2301.11445.
    """

    def __init__(
        self,
        side: int = 16,
        width: int = 64,
        heads: int = 4,
        depth: int = 2,
        inner: int = 128,
        octaves: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = Sizes.even(width, heads)
        if min(side, octaves) < 1:
            raise wrong("side, octaves", f"{side}, {octaves}", "at least 1 each")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = (Block(Attention(build("softmax"), Grouped(sizes)), width, inner) for _ in range(depth))
            self.blocks = nn.ModuleList(made)
            self.place = nn.Linear(3 + 6 * octaves, width)
            self.norms = nn.ModuleList(nn.RMSNorm(width, 1e-6) for _ in range(2))
            self.reads = Attention(build("softmax"), Grouped(sizes))
            self.filled = nn.Linear(width, 1)
        self.middles: Tensor
        self.waves: Tensor
        line = (2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1
        middles = torch.cartesian_prod(line, line, line)
        turns = (middles[..., None] * math.pi * 2.0 ** torch.arange(octaves)).flatten(1)
        waves = torch.cat([middles, turns.sin(), turns.cos()], 1)
        self.register_buffer("middles", middles.float(), persistent=False)
        self.register_buffer("waves", waves.float(), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        for block in self.blocks:
            z = block(z)
        asked = self.norms[0](self.place(self.waves.to(z.dtype))).expand(len(z), -1, -1)
        return self.filled(self.reads(asked, Layout(), self.norms[1](z)))[..., 0]

    @torch.no_grad()
    def voxels(self, z: Tensor) -> list[Tensor]:
        """``(filled, 3)`` for each of the batch: the middles of the cells whose logit is above 0."""
        return [self.middles[logits > 0] for logits in self(z)]

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def draw(batch: int, seed: int) -> tuple[Tensor, ...]:
            return (torch.randn(batch, 5, 8, generator=Generator().manual_seed(seed)),)

        return [Sample("27 cells", cls(3, 8, 2, 1, 12, 2), {"inputs": draw, "output": (27,)})]
