"""Puppet-Master: a layer of a video network that is told where points are dragged, and reads the first frame."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.blocks.attention import Attention
from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.networks.base import Network
from regard.patterns.named import all_to_first
from regard.projections.base import Grouped


def real_drags(drags: Tensor) -> Tensor:
    """``(b, D)`` bool: those of ``drags (b, f, D, 4)`` that are not zeros throughout, which stand for none."""
    return (drags != 0).flatten(3).any(-1).any(1)


def drawn_drags(drags: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps of ``drags (b, f, D, 4)`` on ``size`` cells: ``(b, f, 6 D, y, x)``.

    Of each drag where it starts, where it stands in the frame and where it ends, x and y each: −1 everywhere but in the
    point's own cell, which says where in it the point lies, 0 to 1. A drag of zeros in a frame is −1 there throughout.
    """
    rows, columns = size
    points = torch.cat([drags, drags[:, -1:, :, 2:].expand(-1, drags.shape[1], -1, -1)], -1)
    points = points.unflatten(-1, (3, 2)) * drags.new_tensor([columns, rows])  # (b, f, D, 3, 2)
    x, y = (
        (part - 0.5).round().clamp(0, most - 1) for part, most in zip(points.unbind(-1), (columns, rows), strict=True)
    )
    cell = F.one_hot((y * columns + x).long(), rows * columns).bool()  # (b, f, D, 3, cells)
    cell = cell & drags.any(-1)[..., None, None]
    within = (points - torch.stack([x, y], -1))[..., None]
    maps = torch.where(cell[..., None, :], within, -1.0)
    return maps.flatten(2, 4).unflatten(-1, (rows, columns))


def at_points(x: Tensor, points: Tensor) -> Tensor:
    """``(b, D, c)``: maps ``x (b, c, y, x)`` at ``points (b, D, 2)``, x and y from 0 to 1, interpolated linearly."""
    found = F.grid_sample(x, 2 * points[:, None] - 1, mode="bilinear", padding_mode="border", align_corners=False)
    return found[:, :, 0].mT


def waves(width: int, size: tuple[int, int]) -> Tensor:
    """``(width, y, x)``: sines and cosines of a cell's column, then of its row, ``width / 4`` of each."""
    rates = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    turns = [torch.arange(count, dtype=torch.float64)[:, None] * rates for count in size]
    rows, columns = (torch.cat([turn.sin(), turn.cos()], 1) for turn in turns)
    shape = (*size, width // 2)
    return torch.cat([columns[None].expand(shape), rows[:, None].expand(shape)], -1).permute(2, 0, 1)


@published(
    "dragged",
    family="generate",
    kind="network",
    row=186,
    title="Puppet-Master: Scaling Interactive Video Generation as a Motion Prior for Part-Level Dynamics",
    arxiv="2408.04631",
    year=2024,
    aliases=("drag_tokens",),
    fidelity="hand values",
    claim=Claim(
        "a drag changes the features of its own frame alone, but of the first frame's those of all",
        cells="drags.reaches",
        holds="drags.in_their_frame",
    ),
)
class Dragged(Network):
    """Maps of drags scale and shift features, points of drags are tokens beside the text, frames read the first.

        x ← x (1 + s) + t,   [s; t] = conv(silu(conv(… maps of the drags)))
        token_d = W₂ silu(W₁ [x at the start; x at the end; P at the start; P at the end]),   0 where there is no drag
        x ← x + all_to_first(norm(x)),   x ← x + cross(norm(x), [text; tokens of the frame])

    P are `waves` of the grid's cells, maps of drags `drawn_drags`; the last convolution begins with zeros. Tokens send
    no gradients into x. Self-attention is spatial, of each frame's queries and the first frame's keys and values.

    Shapes: ``x (b, f, y, x, width), drags (b, f, D, 4), text (b, m, width)`` -> as x. A drag is where it starts, x and
    y from 0 to 1, and where it stands in the frame; zeros throughout are none.

    Args:
        grid: f, y and x. width: of features, text and tokens. drags: D. heads: of both attentions. inner: channels of
            the convolutions but the last. positions: channels of P. seed: of the weights.

    Raises:
        ValueError: heads that do not divide the width, positions that 4 does not divide; in a call, other shapes.

    Paper: Li et al., arXiv 2408.04631. Around it are the blocks of a video network as they were, and the text there has
    a width of its own.
    """

    def __init__(
        self,
        grid: Sequence[int],
        width: int = 64,
        drags: int = 5,
        heads: int = 4,
        inner: Sequence[int] = (256, 320, 320),
        positions: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = Sizes.even(width, heads)
        if positions % 4 or not inner:
            raise wrong("positions, inner", f"{positions}, {inner}", "a multiple of 4, and at least one convolution")
        self.grid, self.drags = tuple(grid), drags
        frames, rows, columns = self.grid
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            widths = [6 * drags, inner[0]]
            for before, after in itertools.pairwise(inner):
                widths += [before, after]
            self.maps = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
            self.last = nn.Conv2d(inner[-1], 2 * width, 3, padding=1)
            self.tokens = nn.Sequential(nn.Linear(2 * (width + positions), width), nn.SiLU(), nn.Linear(width, width))
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
            pattern = build("pattern", of=all_to_first(frames, rows * columns))
            self.attention = Attention(pattern, Grouped(sizes))
            self.cross = Attention(build("softmax"), Grouped(sizes))
        for tensor in self.last.parameters():
            nn.init.zeros_(tensor)
        self.places: Tensor
        self.register_buffer("places", waves(positions, (rows, columns)), persistent=False)

    def check(self, x: Tensor, drags: Tensor) -> None:
        """Raises a ValueError that names what has another shape than the constructor was told."""
        if x.dim() != 5 or tuple(x.shape[1:4]) != self.grid:
            raise wrong("x", f"shape {tuple(x.shape)}", f"(batch, {', '.join(map(str, self.grid))}, width)")
        wanted = (x.shape[0], self.grid[0], self.drags, 4)
        if tuple(drags.shape) != wanted:
            raise wrong("drags", f"shape {tuple(drags.shape)}", str(wanted))

    def moved(self, x: Tensor, drags: Tensor) -> Tensor:
        """x, scaled and shifted by what the maps of drags say."""
        y = drawn_drags(drags, (self.grid[1], self.grid[2])).flatten(0, 1).to(x.dtype)
        for convolution in self.maps:
            y = F.silu(convolution(y))
        scale, shift = self.last(y).movedim(1, -1).unflatten(0, x.shape[:2]).chunk(2, -1)
        return x * (1 + scale) + shift

    def told(self, x: Tensor, drags: Tensor) -> Tensor:
        """Tokens of the drags ``(b, f, D, width)``."""
        maps = x.detach().flatten(0, 1).movedim(-1, 1)
        where = self.places.to(x.dtype).expand(len(maps), -1, -1, -1)
        start, end = drags.flatten(0, 1).to(x.dtype).chunk(2, -1)
        parts = [at_points(maps, start), at_points(maps, end), at_points(where, start), at_points(where, end)]
        tokens = self.tokens(torch.cat(parts, -1)).unflatten(0, x.shape[:2])
        return tokens.masked_fill(~real_drags(drags)[:, None, :, None], 0)

    def forward(self, x: Tensor, drags: Tensor, text: Tensor) -> Tensor:
        self.check(x, drags)
        x = self.moved(x, drags)
        tokens = self.told(x, drags)
        lines = x.flatten(1, 3)
        lines = lines + self.attention(self.norms[0](lines))
        frames = lines.unflatten(1, (self.grid[0], -1)).flatten(0, 1)
        context = torch.cat([text[:, None].expand(-1, self.grid[0], -1, -1), tokens], 2).flatten(0, 1)
        frames = frames + self.cross(self.norms[1](frames), Layout(), context)
        return frames.view(x.shape)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def draw(batch: int, seed: int) -> tuple[Tensor, ...]:
            generator = Generator().manual_seed(seed)
            x = torch.randn(batch, 3, 4, 5, 8, generator=generator)
            drags = torch.rand(batch, 3, 2, 4, generator=generator)
            drags[..., 1, :] *= seed % 2  # the second is none in some draws
            return x, drags, torch.randn(batch, 2, 8, generator=generator)

        net = cls((3, 4, 5), 8, 2, 2, (6, 7), 4)
        nn.init.normal_(net.last.weight, std=0.1)
        given: dict[str, Any] = {"inputs": draw, "output": (3, 4, 5, 8)}
        return [Sample("two drags", net, given)]
