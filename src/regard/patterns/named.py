"""Published patterns that are compositions of simple ones, each by its name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by
from regard.patterns.base import Pattern
from regard.patterns.grid import GridTokens, Neighborhood, Plane, Same, Sizes, Tiles, as_grid
from regard.patterns.line import Blocks, GlobalKeys, Parts

T = TypeVar("T")


def drawn(*cases: tuple[tuple[Any, ...], int]) -> Callable[[T], T]:
    """Gives a function of patterns its examples: its arguments, and how many tokens the pattern is then for."""

    def give(function: Any) -> Any:
        def samples() -> list[Sample]:
            found = [(pattern, tokens) for given, tokens in cases for pattern in listed(function(*given))]
            return [Sample(str(pattern), pattern, {"tokens": tokens}) for pattern, tokens in found]

        return shown_by(samples)(function)

    return give


def listed(patterns: Pattern | tuple[Pattern, ...]) -> tuple[Pattern, ...]:
    """One pattern or several."""
    return (patterns,) if isinstance(patterns, Pattern) else patterns


@published(
    "attention_tiles",
    family="generate",
    kind="pattern",
    row=254,
    title="Efficient-vDiT: Efficient Video Diffusion Transformers With Attention Tile",
    arxiv="2502.06155",
    year=2025,
    aliases=("efficient_vdit",),
    fidelity="hand values",
    claim=Claim(
        "of f frames, k of them references, f + 2 k f − k² − k pairs of f² are kept: linear in f",
        cells="patterns.attention_tiles",
        holds="patterns.exact",
    ),
)
@drawn(((4, 5, [0, 2]), 20), ((3, 7), 21))
def attention_tiles(frames: int, tokens: int, references: int | Sequence[int] = 0) -> Pattern:
    """Frames see themselves and the reference frames, and the reference frames see all.

    Args:
        frames, tokens: of the video, and of a frame. references: the frames that all see and that see all.

    Paper: Ding et al., arXiv 2502.06155, whose search over layers and distillation are in `regard.train.tiles`.
    """
    grid = (frames, tokens)
    chosen = Plane(grid, references)
    return Same(grid, 0) | chosen | Transposed(chosen)


class Transposed(Pattern):
    """A pattern with the parts of queries and keys exchanged."""

    def __init__(self, inner: Pattern) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"Transposed({self.inner})"

    @property
    def grid(self) -> tuple[int, ...] | None:
        return self.inner.grid

    def check(self, m: int) -> None:
        self.inner.check(m)

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        return self.inner.visible(j, i, m)


@published(
    "nearby_3d",
    family="generate",
    kind="pattern",
    row=215,
    title="NÜWA: Visual Synthesis Pre-training for Neural visUal World creAtion",
    arxiv="2111.12417",
    year=2021,
    aliases=("3dna", "nuwa"),
    fidelity="hand values",
    claim=Claim(
        ("equals the equivalent neighbourhood mask for self- and for cross-attention between grids of other sizes"),
        cells="patterns.nearby",
        holds="common.is_true(figure=exact, said='masks equal by brute force')",
    ),
)
class Nearby(Pattern):
    """Which cells of one grid see which of another: those within an extent of the scaled coordinates.

        seen if |⌊x_a · K_a / Q_a⌋ − y_a| ≤ extent_a on every axis a

    Args:
        queries, keys: Q and K, grids of 1 to 3 sizes. extent: one for all axes, or one for each.

    Paper: Wu et al., arXiv 2111.12417; the encoder and decoder of codes: `regard.networks.nuwa`.

    Raises:
        ValueError: other numbers of axes, other numbers of tokens.
    """

    crossed = True

    def __init__(self, queries: Sizes, keys: Sizes, extent: Sizes) -> None:
        self.first, self.second = as_grid(queries), as_grid(keys)
        self.extent = (extent,) * len(self.first) if isinstance(extent, int) else tuple(extent)
        if not len(self.first) == len(self.second) == len(self.extent):
            wanted = f"as many axes as the queries' {self.first}"
            raise wrong("keys, extent", f"{self.second}, {self.extent}", wanted)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        sizes = (((3, 5, 2), (3, 5, 2), (1, 2, 0)), ((4, 6), (2, 3), (0, 1)), ((3,), (11,), 1))
        made = [(cls(*each), math.prod(each[0]), math.prod(each[1])) for each in sizes]
        return [Sample(str(thing), thing, {"queries": n, "tokens": m}) for thing, n, m in made]

    def __repr__(self) -> str:
        return f"Nearby({self.first}, {self.second}, {self.extent})"

    def check(self, m: int) -> None:
        if m != math.prod(self.second):
            raise wrong("keys", f"a grid of {self.second}", f"one of the {m} tokens")

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        i = i + (math.prod(self.first) - m)
        seen = i >= 0
        for q, k, span in reversed(list(zip(self.first, self.second, self.extent, strict=True))):
            near = ((i % q) * k // q - j % k).abs() <= span
            i, j, seen = i // q, j // k, seen & near
        return seen


def nearby(queries: Sizes, keys: Sizes, extent: Sizes) -> Tensor:
    """``(∏ Q, ∏ K)`` bool: the entries of `Nearby`."""
    return Nearby(queries, keys, extent).dense(math.prod(as_grid(queries)), math.prod(as_grid(keys)))[0]


@published(
    "freeswim",
    family="generate",
    kind="pattern",
    row=34,
    title="FreeSwim: Revisiting Sliding-Window Attention Mechanisms for Training-Free Ultra-High-Resolution Video "
    "Generation",
    arxiv="2511.14712",
    year=2025,
    aliases=("inward_window",),
    fidelity="hand values",
    claim=Claim(
        "every query sees exactly (2 d_h + 1)(2 d_w + 1) T keys, at the borders too",
        cells="patterns.inward",
        holds="patterns.same_everywhere",
    ),
)
@drawn(((2, 5, 7, 1, 2), 70))
def inward_window(frames: int, height: int, width: int, half_height: int, half_width: int) -> Pattern:
    """Windows in space over all frames, moved inward at the borders, so that each query sees as much as in training.

    Args:
        frames, height, width: of the video. half_height, half_width: the window reaches so far to each side.

    Paper: Wu et al., arXiv 2511.14712; the path whose cross-attention is put in the windows' place, and what a step
    keeps of it: `regard.networks.freeswim`.
    """
    return Neighborhood((frames, height, width), (frames, 2 * half_height + 1, 2 * half_width + 1))


@published(
    "fused_view_time",
    family="generate",
    kind="pattern",
    row=189,
    title="4Real-Video-V2: Fused View-Time Attention and Feedforward Reconstruction for 4D Scene Generation",
    arxiv="2506.18839",
    year=2025,
    aliases=("view_time",),
    missing="the reconstruction model",
    fidelity="hand values",
    claim=Claim(
        ("the share of kept pairs is (V + T − 1) / (V T) exactly; block-sparse equals masked dense attention"),
        cells="patterns.view_time",
        holds="patterns.exact",
    ),
)
@drawn(((2, 3, 5), 30))
def fused_view_time(views: int, times: int, tokens: int) -> Pattern:
    """Tokens of a view and a time see all of the same view or of the same time, in one layer.

    Args:
        views, times, tokens: V, T, and tokens of a frame.

    Paper: Wang et al., arXiv 2506.18839.
    """
    grid = (views, times, tokens)
    return Same(grid, 0) | Same(grid, 1)


@published(
    "part_attention",
    family="generate",
    kind="pattern",
    row=75,
    title="Ultra3D: Efficient and High-Fidelity 3D Generation with Part Attention",
    arxiv="2507.17745",
    year=2025,
    aliases=("ultra3d",),
    fidelity="hand values",
    claim=(
        Claim(
            "equals dense attention under the block-diagonal mask; pairs are Σ n_p² of n²",
            cells="patterns.parts",
            holds="patterns.exact",
        ),
        Claim(
            ("8 equal parts of 8,192 voxels, sorted by part, are at least 3 times faster than dense attention"),
            cells="patterns.parts_time",
            holds="common.at_most(figure=ratio, most=0.333, said='time over that of dense attention')",
        ),
    ),
)
@drawn((([0, 3, 3, 1, 0, 1, 3, 0, 0, 2, 1, 3, 3],), 13))
def part_attention(ids: Tensor | Sequence[int]) -> Pattern:
    """Tokens see those of their own part, wherever they stand.

    Args:
        ids: the part of each token.

    Paper: Chen et al., arXiv 2507.17745; with cross-attention to the image tokens that a part falls on, and the coarse
    layout of voxels from latents: `regard.networks.part_voxels`.
    """
    return Parts(ids)


@published(
    "all_to_first",
    family="generate",
    kind="pattern",
    row=186,
    title="Puppet-Master: Scaling Interactive Video Generation as a Motion Prior for Part-Level Dynamics",
    arxiv="2408.04631",
    year=2024,
    aliases=("puppet_master",),
    fidelity="hand values",
    claim=Claim(
        ("every frame reads the first frame alone; the first frame's output is that of ordinary spatial attention"),
        cells="patterns.first_frame",
        holds="common.within(most=1e-12)",
    ),
)
@drawn(((4, 5), 20))
def all_to_first(frames: int, tokens: int) -> Pattern:
    """Every frame's queries see the first frame's keys alone.

    Args:
        frames, tokens: of the video, and of a frame.

    Paper: Li et al., arXiv 2408.04631; with maps and tokens of drags: `regard.networks.drags`.
    """
    return Plane((frames, tokens), 0)


@published(
    "isolation",
    family="generate",
    kind="pattern",
    row=240,
    title="Improving Multi-Subject Consistency in Open-Domain Image Generation with Isolation and Reposition Attention",
    arxiv="2411.19261",
    year=2024,
    aliases=("ir_diffusion",),
    fidelity="hand values",
    claim=Claim(
        "the attention between different subjects is exactly zero",
        cells="patterns.isolated",
        holds="patterns.is_zero_between",
    ),
)
@drawn((([0, 1, 1, 2, 0, 2, 1, 2, 3, 1, 1],), 11))
def isolation(subjects: Tensor | Sequence[int], background: int = 0) -> Pattern:
    """Tokens see those of their own subject, in reference and target, and the background, which sees all.

    Args:
        subjects: of each token. background: the number that stands for none.

    Paper: He et al., arXiv 2411.19261; with references of the subjects, moved to where these stand, which the
    background does not read: `regard.networks.reposition`.
    """
    ids = torch.as_tensor(subjects)
    free = GlobalKeys((ids == background).nonzero()[:, 0].tolist())
    return Parts(ids) | free | Transposed(free)


@published(
    "multi_axis",
    family="vit",
    kind="pattern",
    title="MaxViT: Multi-Axis Vision Transformer",
    arxiv="2204.01697",
    year=2022,
    fidelity="hand values",
    claim=Claim(
        "blocks and then grid: after one pair every pixel reaches every pixel",
        cells="patterns.multi_axis",
        holds="patterns.reaches_all",
    ),
)
@drawn((((7, 11), (3, 4)), 77))
def multi_axis(grid: Sizes, tile: Sizes) -> tuple[Pattern, Pattern]:
    """Block attention in boxes of ``tile`` cells, and grid attention among the cells in the same place of every box.

    Paper: Tu et al., arXiv 2204.01697, whose grid attention fixes the number of cells, here the size of the boxes.
    """
    return Tiles(grid, tile), GridTokens(grid, tile)


@published(
    "chunked",
    family="linear",
    kind="pattern",
    row=205,
    title="Recurrent Memory-Augmented Transformers with Chunked Attention for Long-Context Language Modeling",
    arxiv="2507.00453",
    year=2025,
    aliases=("chunk_local",),
    fidelity="hand values",
    claim=Claim(
        "local attention inside of chunks has a cost per token that does not grow",
        cells="patterns.chunks",
        holds="patterns.do_not_grow",
    ),
)
@drawn(((5,), 43))
def chunked(size: int) -> Pattern:
    """Tokens see those of their own chunk.

    Args:
        size: tokens of a chunk.

    Paper: Kashyap, arXiv 2507.00453, whose memory beside it is in `regard.networks.fifo.FifoLM`.
    """
    return Blocks(size)
