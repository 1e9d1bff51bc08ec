"""Neighbourhood attention on grids of one, two and three axes: sliding, dilated, strided, with relative bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits
from regard.kernels.block_sparse import plan as block_sparse
from regard.mechanisms.sparse.pattern import Patterned
from regard.patterns import Neighborhood, Pattern, Trailing
from regard.patterns.grid import Sizes, coordinates, on_axes, tiles


@published(
    "neighborhood",
    family="vit",
    kind="mechanism",
    row=44,
    title="Faster Neighborhood Attention: Reducing the O(n^2) Cost of Self Attention at the Threadblock Level",
    arxiv="2403.04690",
    year=2024,
    aliases=("na", "natten", "fna", "fused_neighborhood"),
    fidelity="authors' code",
    claim=(
        Claim(
            "equals the brute-force neighbourhood cell by cell, also where the window is the map",
            cells="neighborhood.wide",
            holds="common.within(most=1e-12)",
        ),
        Claim(
            (
                "fused it takes at most 0.35 of dense attention on 64 × 64 cells with k = 13, and gathering "
                "at least 3 times as long"
            ),
            cells="neighborhood.speed",
            holds="neighborhood.is_fast",
        ),
    ),
)
class NeighborhoodAttention(Patterned):
    """Softmax attention of every cell of a grid to the window of cells around it, moved inside at the borders.

    The grid is ``layout.grid``, a line if that is None; `regard.patterns.Neighborhood` has the equation. Causal on a
    line, the window ends at the query, and tokens can be added; causal on a grid, it is cut at the query.

    Args:
        window: cells of the window. stride: queries that share one, at most as many. dilation: distance of its cells.
        causal: axes along which the window ends at the query, for calls on a grid. Each for all axes or one for each.
        scale: None for ``1 / sqrt(d)``.

    Raises:
        ValueError: a number below one, a stride above the window; in a call, a grid of other axes, or one of several
            axes in a padded or packed batch.

    Papers: Hassani et al., arXiv 2403.04690 (kernels), 2204.07143 (the mechanism).
    """

    traits = Traits(cross=False, masked=True, rows="one", sign="nonnegative", time="linear", state="constant")

    def __init__(
        self,
        window: Sizes = 7,
        stride: Sizes = 1,
        dilation: Sizes = 1,
        causal: bool | Sequence[bool] = False,
        scale: float | None = None,
    ) -> None:
        super().__init__(scale)
        axes = next((len(tuple(x)) for x in (window, stride, dilation) if not isinstance(x, int)), 1)
        for w, s in zip(on_axes("window", window, axes), on_axes("stride", stride, axes), strict=True):
            if s > w:
                raise wrong("stride", str(stride), f"at most the window, {window}")
        on_axes("dilation", dilation, axes)
        self.window, self.stride, self.dilation, self.causal = window, stride, dilation, causal

    def pattern_for(self, m: int, layout: Layout) -> Pattern:
        grid = layout.grid or (m,)
        if len(grid) > 1 and not layout.regular:
            raise wrong("layout.grid", f"{grid} in a padded or packed batch", "a line, or a batch without padding")
        if layout.causal and len(grid) == 1:
            sizes = [on_axes("window", x, 1)[0] for x in (self.window, self.stride, self.dilation)]
            return Trailing(*sizes)
        return Neighborhood(grid if m else 1, self.window, self.stride, self.dilation, self.causal)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("w = 7", cls(7), heads=3, kv_heads=3),
            Example("w = 4, groups of 3, every second, grouped", cls(4, 3, 2), heads=4, kv_heads=2),
        ]


@published(
    "dina",
    family="vit",
    row=208,
    title="Dilated Neighborhood Attention Transformer",
    arxiv="2209.15001",
    year=2022,
    aliases=("dinat", "dilated_neighborhood"),
    fidelity="authors' code",
    claim=(
        Claim(
            "dilation 1 is neighbourhood attention; equals it on each grid of one residue",
            cells="neighborhood.residues",
            holds="common.within(most=1e-12)",
        ),
        Claim(
            "a dilated and then a local layer reach the whole map when k · k ≥ its side",
            cells="neighborhood.reach",
            holds="neighborhood.reaches_the_map",
        ),
    ),
)
class DilatedNeighborhood(NeighborhoodAttention):
    """Neighbourhood attention among the cells of equal residue modulo the dilation.

    Args:
        window, dilation: of all axes or of each. scale: None for ``1 / sqrt(d)``.

    Paper: Hassani and Shi, arXiv 2209.15001.
    """

    def __init__(self, window: Sizes = 7, dilation: Sizes = 2, scale: float | None = None) -> None:
        super().__init__(window, 1, dilation, scale=scale)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("w = 5, every third", cls(5, 3), heads=3, kv_heads=3),
            Example("w = 2, every second, grouped", cls(2, 2), heads=4, kv_heads=2),
        ]


@published(
    "gna",
    family="vit",
    row=128,
    title="Generalized Neighborhood Attention: Multi-dimensional Sparse Attention at the Speed of Light",
    arxiv="2504.16922",
    year=2025,
    aliases=("generalized_neighborhood",),
    fidelity="authors' code",
    claim=(
        Claim(
            "stride 1 is neighbourhood attention, stride w blocked attention",
            cells="neighborhood.strides",
            holds="common.within(most=1e-12)",
        ),
        Claim(
            "counted tiles equal brute force",
            cells="neighborhood.counted",
            holds="common.is_true(figure=exact, said='tile counts exact')",
        ),
        Claim(
            "the speed-up measured never exceeds the simulator's bound",
            cells="neighborhood.speed",
            holds="neighborhood.is_bounded",
        ),
    ),
)
class GeneralizedNeighborhood(NeighborhoodAttention):
    """Neighbourhood attention in which groups of ``stride`` neighbouring queries share one window.

    Args:
        window, stride: of all axes or of each; the stride is at most the window. scale: None for ``1 / sqrt(d)``.

    Paper: Hassani et al., arXiv 2504.16922.
    """

    def __init__(self, window: Sizes = 8, stride: Sizes = 4, scale: float | None = None) -> None:
        super().__init__(window, stride, scale=scale)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("w = 8, groups of 4", cls(8, 4), heads=3, kv_heads=3),
            Example("w = 5, blocked, grouped", cls(5, 5), heads=4, kv_heads=2),
        ]


@dataclass(frozen=True)
class Simulated:
    """Tiles that a tiled kernel visits, of how many.

    Args:
        visited, total: pairs of a tile of queries and one of keys.
    """

    visited: int
    total: int

    @property
    def bound(self) -> float:
        """The most by which such a kernel is faster than a dense one."""
        return self.total / max(self.visited, 1)


def simulate(pattern: Neighborhood, queries: Sizes, keys: Sizes) -> Simulated:
    """Counts tiles of the shapes ``queries`` and ``keys`` that hold visible pairs, without the mask."""
    axes = len(pattern.grid)
    first, second = (tiles(pattern.grid, on_axes("tile", tile, axes)) for tile in (queries, keys))
    total = math.prod(pattern.grid)
    cover = pattern.cover_of(first, second, total, total, exact=False)
    return Simulated(cover.blocks, len(first.tokens) * len(second.tokens))


@published(
    "nat",
    family="vit",
    row=163,
    title="Neighborhood Attention Transformer",
    arxiv="2204.07143",
    year=2022,
    aliases=("neighborhood_bias",),
    fidelity="authors' code",
    claim=(
        Claim(
            "k as wide as the map is full attention with relative bias",
            cells="neighborhood.wide",
            holds="common.within(most=1e-12)",
        ),
        Claim("equals the brute-force reference", cells="neighborhood.by_cells", holds="common.within(most=1e-12)"),
        Claim("equivariant to shifts in the interior", cells="neighborhood.shifts", holds="common.within(most=1e-12)"),
        Claim(
            "time linear in the cells: twice the cells take less than 2.3 times as long",
            cells="neighborhood.growth",
            holds="common.at_most(figure=ratio, most=2.3, said='times the time for twice the cells', form='.2f')",
        ),
    ),
)
class NeighborhoodBias(NeighborhoodAttention):
    """Neighbourhood attention with a learned bias for each head and offset within the window.

        s_ij = scale q_i · k_j + B[h, (i − j) / dilation + (k − 1)]   on each axis

    Args:
        heads: one table each. axes: of the grids that it is called on. window: k, of all axes or of each.
        scale: None for ``1 / sqrt(d)``. dilation: distance of the window's cells, of all axes or of each.

    Raises:
        ValueError: q has another number of heads, or the grid other axes.

    Paper: Hassani et al., arXiv 2204.07143.
    """

    def __init__(
        self, heads: int = 4, axes: int = 1, window: Sizes = 7, scale: float | None = None, dilation: Sizes = 1
    ) -> None:
        super().__init__(window, 1, dilation, scale=scale)
        if heads < 1 or not 1 <= axes <= 3:
            raise wrong("heads, axes", f"{heads}, {axes}", "at least one head, 1 to 3 axes")
        self.sizes, self.steps = on_axes("window", window, axes), on_axes("dilation", dilation, axes)
        self.table = nn.Parameter(torch.zeros(heads, *(2 * k - 1 for k in self.sizes)))
        nn.init.trunc_normal_(self.table, std=0.02)

    def bias_for(self, m: int, layout: Layout) -> block_sparse.Bias:
        grid = layout.grid or (max(m, 1),)

        def bias(i: Tensor, j: Tensor) -> Tensor:
            apart = [a - b for a, b in zip(coordinates(i, grid), coordinates(j, grid), strict=True)]
            apart = apart if layout.grid else [i - j]
            each = zip(apart, self.sizes, self.steps, strict=True)
            places = [(x // step + k - 1).clamp(0, 2 * k - 2) for x, k, step in each]  # others are hidden
            return self.table[(slice(None), *places)]

        return bias

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        if q.shape[1] != self.table.shape[0]:
            raise wrong("q", f"{q.shape[1]} heads", f"{self.table.shape[0]}, the number of bias tables")
        if len(layout.grid or (1,)) != len(self.sizes):
            raise wrong("layout.grid", f"{layout.grid}", f"a grid of {len(self.sizes)} axes")

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("w = 5", cls(3, window=5), heads=3, kv_heads=3),
            Example("grouped", cls(4), 4, 2),
            Example("every second", cls(2, window=3, dilation=2)),
        ]
