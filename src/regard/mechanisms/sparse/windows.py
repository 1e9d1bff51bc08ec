"""Attention inside of windows of a grid: windows that lie side by side, or whose cells are spread over the map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits, repeat_heads
from regard.kernels.block_sparse import plan as block_sparse
from regard.mechanisms.sparse.pattern import Patterned
from regard.patterns import Pattern, Tiles
from regard.patterns.grid import GridTokens, coordinates


@published(
    "windows",
    family="vit",
    title="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
    arxiv="2103.14030",
    year=2021,
    aliases=("window_attention", "w_msa"),
    fidelity="third-party code",
    claim=Claim(
        "windows equal attention in each of them, whatever the sides of the map",
        cells="stages.windows",
        holds="common.within(most=1e-9)",
    ),
)
class Windows(Patterned):
    """Softmax attention among the cells of each window of a grid.

        A_ij = softmax over the window of i of  scale q_i · k_j + B[h, r_i − r_j]

    The grid is ``layout.grid``, a line if that is None. Windows begin at the first cell; those at the far border hold
    the cells that are left. With a ``shift`` the first window of each axis has that many cells, as if a map rolled by
    it were parted, whose ends do not meet. ``spread`` takes ``side`` cells an axis that are ⌈size / side⌉ apart
    (MaxViT's grid attention) instead of neighbours. r are the coordinates in the window, B the table, none without
    ``bias``.

    Cost: a map is padded to whole windows, so ``2 cells side² (d + e)`` FLOPs a head on a plane.

    Args:
        side: cells of a window along each axis. spread: see above. bias: whether there is a table of relative
            positions. heads: of q, for the table. axes: of the grids that the table is for. scale: None for
            ``1 / sqrt(d)``. shift: below the side, half of it in every second layer of Swin.

    Raises:
        ValueError: a side below one; a shift of spread windows, or one that is not below the side; in a call, with a
            bias, other heads or a grid of other axes.

    Papers: Liu et al., arXiv 2103.14030; Chu et al. (LSA), 2104.13840; Tu et al. (spread), 2204.01697. Padding is no
    key here, in some published code it is one of zeros; at sizes that windows divide there is none.
    """

    traits = Traits(causal=False, cross=False, masked=True, rows="one", sign="nonnegative", time="linear")

    def __init__(
        self,
        side: int = 7,
        spread: bool = False,
        bias: bool = False,
        heads: int = 4,
        axes: int = 2,
        scale: float | None = None,
        shift: int = 0,
    ) -> None:
        super().__init__(scale)
        if side < 1:
            raise wrong("side", str(side), "at least 1")
        if not 0 <= shift < side or (spread and shift):
            raise wrong("shift", str(shift), f"0 to {side - 1}, and 0 where windows are spread")
        self.shift, self.before = shift, -shift % side
        self.side, self.spread, self.axes = side, spread, axes
        self.table = nn.Parameter(torch.zeros(heads, *(2 * side - 1,) * axes)) if bias else None
        if self.table is not None:
            nn.init.trunc_normal_(self.table, std=0.02)
        self.known: dict[tuple[int, ...], Pattern] = {}

    def pattern_for(self, m: int, layout: Layout) -> Pattern:
        grid = layout.grid or (max(m, 1),)
        if grid not in self.known:
            tile = self.apart(grid)
            self.known[grid] = GridTokens(grid, tile) if self.spread else Tiles(grid, tile, self.shift)
        return self.known[grid]

    def apart(self, grid: Sequence[int]) -> tuple[int, ...]:
        """Cells of a tile along each axis: the side, or how far the cells of a spread window are apart."""
        return tuple(-(-size // self.side) if self.spread else self.side for size in grid)

    def bias_for(self, m: int, layout: Layout) -> block_sparse.Bias | None:
        if self.table is None:
            return None
        table, grid, before = self.table, layout.grid or (max(m, 1),), self.before
        tile = self.apart(grid)

        def bias(i: Tensor, j: Tensor) -> Tensor:
            places = []
            ends = ([i], [j]) if layout.grid is None else (coordinates(i, grid), coordinates(j, grid))
            for a, b, step in zip(*ends, tile, strict=True):
                first, last = (a // step, b // step) if self.spread else ((a + before) % step, (b + before) % step)
                apart = first - last
                places.append((apart + self.side - 1).clamp(0, 2 * self.side - 2))  # others are hidden
            return table[(slice(None), *places)]

        return bias

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        if layout.grid is None or len(layout.grid) != 2 or not layout.plain:
            return super().forward(q, k, v, layout, **signals)
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        grid, windows = layout.grid, self.windows(layout.grid)
        parts = (self.parted(x, grid, windows) for x in (q, k, v))
        out = F.scaled_dot_product_attention(*parts, attn_mask=self.mask(q, grid, windows), scale=self.scale)
        return self.joined(out, grid, windows, q.shape[0])

    def windows(self, grid: tuple[int, ...]) -> tuple[int, int]:
        """Windows along each axis."""
        y, x = (
            step if self.spread else -(-(size + self.before) // self.side)
            for size, step in zip(grid, self.apart(grid), strict=True)
        )
        return y, x

    def parted(self, x: Tensor, grid: tuple[int, ...], windows: tuple[int, int]) -> Tensor:
        """Tokens ``(b, h, n, d)`` as windows ``(b · windows, h, side², d)``, zeros where the map ends."""
        x = x.unflatten(2, grid)
        before, more = self.before, [c * self.side - size - self.before for c, size in zip(windows, grid, strict=True)]
        if before or any(more):
            x = F.pad(x, (0, 0, before, more[1], before, more[0]))
        (rows, columns), side = windows, self.side
        if self.spread:
            parts = x.unflatten(3, (side, columns)).unflatten(2, (side, rows)).permute(0, 3, 5, 1, 2, 4, 6)
        else:
            parts = x.unflatten(3, (columns, side)).unflatten(2, (rows, side)).permute(0, 2, 4, 1, 3, 5, 6)
        return parts.flatten(4, 5).flatten(0, 2)

    def joined(self, x: Tensor, grid: tuple[int, ...], windows: tuple[int, int], batch: int) -> Tensor:
        """`parted` undone."""
        x = x.unflatten(0, (batch, *windows)).unflatten(4, (self.side, self.side))
        x = x.permute(0, 3, 4, 1, 5, 2, 6) if self.spread else x.permute(0, 3, 1, 4, 2, 5, 6)
        x = x.flatten(4, 5).flatten(2, 3)
        first = self.before
        return x[:, :, first : first + grid[0], first : first + grid[1]].flatten(2, 3)

    def mask(self, q: Tensor, grid: tuple[int, ...], windows: tuple[int, int]) -> Tensor | None:
        """What is added to the scores of the windows, or which of their cells are there; None for nothing."""
        added = None
        if self.table is not None:
            place = torch.arange(self.side**2, device=q.device)
            y, x = place // self.side, place % self.side
            index = (each[:, None] - each + self.side - 1 for each in (y, x))
            added = self.table[(slice(None), *index)][None].to(q.dtype)
        if all(count * self.side == size for count, size in zip(windows, grid, strict=True)):
            return added
        real = self.parted(torch.ones(1, 1, math.prod(grid), 1, dtype=torch.bool, device=q.device), grid, windows)
        real = real.mT.repeat(q.shape[0], 1, 1, 1)  # (b · windows, 1, 1, side²)
        return real if added is None else added.masked_fill(~real, torch.finfo(q.dtype).min)

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        if self.table is None:
            return
        if q.shape[1] != self.table.shape[0]:
            raise wrong("q", f"{q.shape[1]} heads", f"{self.table.shape[0]}, the number of bias tables")
        if len(layout.grid or (1,)) != self.axes:
            raise wrong("layout.grid", f"{layout.grid}", f"a grid of {self.axes} axes")

    def pairs(self, m: int, layout: Layout) -> int:
        """How many pairs of cells see each other."""
        grid = layout.grid or (m,)
        counts = [self.sizes(size, step) for size, step in zip(grid, self.apart(grid), strict=True)]
        return math.prod(sum(size * size for size in each) for each in counts)

    def sizes(self, size: int, step: int) -> list[int]:
        """Cells of each window along an axis."""
        if self.spread:
            return [len(range(first, size, step)) for first in range(min(step, size))]
        edges = sorted({0, *range(self.shift, size, step), size})
        return [b - a for a, b in itertools.pairwise(edges)]

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        if layout.grid is None or len(layout.grid) != 2 or not layout.plain:
            return super().cost(shape, layout)
        cells = math.prod(self.windows(layout.grid)) * self.side**4
        flops = 2 * shape.batch * shape.heads * cells * (shape.head_dim + shape.values)
        return Cost(flops, shape.io_bytes, 0)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("side 7", cls(7), heads=3, kv_heads=3),
            Example("side 5, biased, grouped", cls(5, bias=True, heads=4, axes=1), heads=4, kv_heads=2),
            Example("side 6, spread", cls(6, spread=True)),
            Example("side 5, shifted, biased", cls(5, bias=True, heads=2, axes=1, shift=2)),
        ]
