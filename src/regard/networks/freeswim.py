"""FreeSwim: blocks that read windows, whose cross-attention is that of a second path which reads everything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from regard.blocks.attention import Attention
from regard.blocks.block import Block
from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.core.sizes import Sizes
from regard.networks.base import Network
from regard.patterns.named import inward_window
from regard.projections.base import Grouped


def sharper(tokens: int, trained: int, head_dim: int) -> float:
    """``√(log n / (d log n_0))``: the scale of scores among n keys for a model that was trained on n_0.

    Raises:
        ValueError: fewer than two tokens.

    Paper: Chiang and Cholak, arXiv 2202.12172; Jin et al., 2306.08645, for images of other sizes.
    """
    if min(tokens, trained) < 2:
        raise wrong("tokens, trained", f"{tokens}, {trained}", "at least 2 each")
    return math.sqrt(math.log(tokens) / (math.log(trained) * head_dim))


@published(
    "two_paths",
    family="generate",
    kind="network",
    row=34,
    title="FreeSwim: Revisiting Sliding-Window Attention Mechanisms for Training-Free Ultra-High-Resolution Video "
    "Generation",
    arxiv="2511.14712",
    year=2025,
    aliases=("cross_override",),
    fidelity="hand values",
    claim=Claim(
        "a clip of twice the sides of training is made 1.5 times as fast where every second step keeps the "
        "cross-attention of the step before",
        cells="two_paths.kept",
        holds="two_paths.is_faster",
    ),
)
class TwoPaths(Network):
    """Blocks of self-attention, cross-attention and a network, run along two paths on the same weights.

        x ← x + window(x),   z ← z + full(z);   c = cross(z);   x ← x + c,   z ← z + c;   each then its network

    The path z sees all tokens, x windows as large as those of training; what z asks of the text x is given, so that
    what is told is said once and not in every window. Only x comes out. A step of a sampler may keep the c of each
    layer for the next, `run`, which then needs no z at all.

    Shapes: ``x (b, n, width), text (b, m, width)`` -> ``(b, n, width)``.

    Args:
        grid: frames, rows and columns of the tokens. half: rows and columns that a window reaches to each side. width,
            heads, depth, inner: of the blocks. trained: tokens of a clip in training, by which scores are sharpened in
            both paths; None for no change. seed: of the weights.

    Raises:
        ValueError: heads that do not divide the width; windows larger than the grid; in a call, other tokens.

    Paper: Wu et al., arXiv 2511.14712. Their sampler starts at strength 0.7 from a clip that is made at the trained
    size and made larger; both paths are run in every second step of the first 40 of 50 for the rows with a prompt, and
    the others see windows alone.
    """

    def __init__(
        self,
        grid: Sequence[int],
        half: Sequence[int],
        width: int = 64,
        heads: int = 4,
        depth: int = 2,
        inner: int = 128,
        trained: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = Sizes.even(width, heads)
        (frames, rows, columns), self.tokens = grid, math.prod(grid)
        scale = None if trained is None else sharper(self.tokens, trained, sizes.head_dim)
        self.window: Mechanism = build("pattern", of=inward_window(frames, rows, columns, *half), scale=scale)

        def attention(own: float | None) -> Attention:
            return Attention(build("softmax", scale=own), Grouped(sizes))

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = (Block(attention(scale), width, inner, attention(None)) for _ in range(depth))
            self.blocks = nn.ModuleList(made)

    def run(self, x: Tensor, text: Tensor, kept: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """What comes out, and each layer's cross-attention ``(b, n, width)``, which is ``kept`` where that is given."""
        if x.dim() != 3 or x.shape[1] != self.tokens:
            raise wrong("x", f"shape {tuple(x.shape)}", f"(batch, {self.tokens}, width)")
        if kept is not None and len(kept) != len(self.blocks):
            raise wrong("kept", f"{len(kept)} of them", f"one for each of the {len(self.blocks)} layers")
        z, found = x, []
        for place, block in enumerate(cast(list[Block], list(self.blocks))):
            x = x + windowed(block.attention, self.window, block.norms[0](x))
            if kept is None:
                assert block.cross is not None
                z = z + block.attention(block.norms[0](z))
                told = block.cross(block.norms[2](z), Layout(), text)
                z = z + told
                z = z + block.network(block.norms[1](z))
            else:
                told = kept[place]
            x = x + told
            x = x + block.network(block.norms[1](x))
            found.append(told)
        return x, found

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        return self.run(x, text)[0]

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def draw(batch: int, seed: int) -> tuple[Tensor, ...]:
            generator = Generator().manual_seed(seed)
            return tuple(torch.randn(batch, n, 8, generator=generator) for n in (2 * 5 * 7, 3))

        given: dict[str, Any] = {"inputs": draw, "output": (70, 8)}
        return [
            Sample("two layers", cls((2, 5, 7), (1, 2), 8, 2, 2, 12), given),
            Sample("sharper", cls((2, 5, 7), (1, 2), 8, 2, 2, 12, trained=30), given),
        ]


def windowed(attention: Attention, window: Mechanism, x: Tensor) -> Tensor:
    """Self-attention of these projections by another mechanism."""
    q, k, v, _ = attention.inputs(x)
    return attention.finish(window(q, k, v), x, None)
