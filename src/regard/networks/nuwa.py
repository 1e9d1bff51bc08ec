"""NÜWA: an encoder and a decoder of codes on grids, each code reading its neighbours on its grid and on the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
from regard.patterns.grid import Sizes as Cells
from regard.patterns.grid import as_grid
from regard.patterns.named import Nearby, nearby
from regard.projections.base import Grouped


class Codes(nn.Module):
    """Embedded codes of a grid, each with a learned vector of its place on every axis.

    Args:
        count: of codes. grid: frames, rows and columns, of which text has one row of one frame. width: of the vectors.
    """

    def __init__(self, count: int, grid: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.grid, self.embed = grid, nn.Embedding(count, width)
        self.axes = nn.ParameterList(0.02 * torch.randn(size, width) for size in grid)

    @property
    def places(self) -> Tensor:
        """``(∏ grid, width)``."""
        total = self.axes[0].new_zeros(*self.grid, self.axes[0].shape[1])
        for axis, table in enumerate(self.axes):
            total = total + table.view(*(len(table) if a == axis else 1 for a in range(len(self.grid))), -1)
        return total.flatten(0, -2)

    def forward(self, ids: Tensor) -> Tensor:
        if ids.shape[1] != math.prod(self.grid):
            raise wrong("ids", f"{ids.shape[1]} of them", f"those of a grid of {self.grid}")
        return self.embed(ids) + self.places


@published(
    "nuwa",
    family="generate",
    kind="network",
    row=215,
    title="NÜWA: Visual Synthesis Pre-training for Neural visUal World creAtion",
    arxiv="2111.12417",
    year=2021,
    fidelity="hand values",
    claim=Claim(
        "a small one tells the codes of a moving spot better than the codes of the frame before do",
        cells="nuwa.moving",
        holds="nuwa.beats_copies",
    ),
)
class Nuwa(Network):
    """Codes of a video, an image or a text, one after the other, given those of another grid: 3D nearby attention.

        C ← C + 3DNA(C, C),   Y ← Y + 3DNA(Y, Y_<),   Y ← Y + 3DNA(Y, C),   each with a gated network behind
        p(y_t | y_<t, C) = softmax(norm(Y_t) W)

    3DNA is softmax attention to the cells of `Nearby`. Y_< are the codes before in raster order, each of which stands
    at the place of the one that follows it, a learned vector at the first place.

    Shapes: ``ids (b, ∏ grid), given (b, ∏ condition)`` int64 -> logits ``(b, ∏ grid, codes)``, at t of ids before t.

    Args:
        codes: how many the grid's cells have. grid: frames, rows and columns. told: how many codes the condition has.
            condition: its grid; a text is (1, 1, tokens). extent: on each axis, of the grid and to the condition.
            width, heads, depth, inner: of the blocks of either side. seed: of the weights.

    Raises:
        ValueError: grids of other axes, or heads that do not divide the width; in a call, codes of other grids.

    Paper: Wu et al., arXiv 2111.12417. The codes are those of a quantised autoencoder, which is not part of it.
    """

    def __init__(
        self,
        codes: int,
        grid: Cells,
        told: int,
        condition: Cells,
        extent: Cells = 1,
        width: int = 64,
        heads: int = 4,
        depth: int = 2,
        inner: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__()
        own, other = as_grid(grid), as_grid(condition)
        sizes = Sizes.even(width, heads)
        near = (extent,) * len(own) if isinstance(extent, int) else tuple(extent)

        def attention(queries: tuple[int, ...]) -> Attention:
            mechanism = build("pattern", of=Nearby(queries, queries, near))
            return Attention(mechanism, Grouped(sizes))

        def across() -> Attention:
            return Attention(build("softmax"), Grouped(sizes))

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.read, self.write = Codes(told, other, width), Codes(codes, own, width)
            self.first = nn.Parameter(0.02 * torch.randn(width))
            self.encoder = nn.ModuleList(Block(attention(other), width, inner) for _ in range(depth))
            self.decoder = nn.ModuleList(Block(attention(own), width, inner, across()) for _ in range(depth))
            self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
            self.logits = nn.Linear(width, codes)
        self.seen: Tensor
        self.register_buffer("seen", nearby(own, other, near), persistent=False)

    def encoded(self, given: Tensor) -> Tensor:
        """``(b, ∏ condition, width)``: what the decoder reads."""
        x = self.read(given)
        for block in self.encoder:
            x = block(x)
        return self.norms[0](x)

    def forward(self, ids: Tensor, given: Tensor) -> Tensor:
        context, seen = self.encoded(given), Layout(mask=self.seen[None, None])
        x = self.write(ids)
        x = torch.cat([self.first.expand(len(x), 1, -1), (x - self.write.places)[:, :-1]], 1) + self.write.places
        for block in self.decoder:
            x = block(x, Layout(causal=True), context, seen)
        return self.logits(self.norms[1](x))

    @torch.no_grad()
    def generate(self, given: Tensor, generator: Generator | None = None) -> Tensor:
        """``(b, ∏ grid)`` codes drawn one after the other; the likeliest ones without a generator."""
        ids = given.new_zeros(len(given), math.prod(self.write.grid))
        for t in range(ids.shape[1]):
            logits = self(ids, given)[:, t]
            drawn = None if generator is None else torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
            ids[:, t] = logits.argmax(-1) if drawn is None else drawn
        return ids

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def sample(name: str, grid: tuple[int, ...], given: tuple[int, ...], near: tuple[int, ...]) -> Sample:
            n, m = math.prod(grid), math.prod(given)

            def draw(batch: int, seed: int) -> tuple[Tensor, ...]:
                generator = Generator().manual_seed(seed)
                return tuple(torch.randint(7, (batch, size), generator=generator) for size in (n, m))

            return Sample(name, cls(7, grid, 7, given, near, 8, 2, 1, 12), {"inputs": draw, "output": (n, 7)})

        return [
            sample("a video of an image", (2, 3, 5), (1, 3, 5), (1, 1, 2)),
            sample("an image of a text", (1, 3, 4), (1, 1, 5), (0, 2, 3)),
        ]
