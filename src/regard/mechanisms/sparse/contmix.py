"""Kernels of each cell's window that are made of its likeness to the regions of the whole map: OverLoCK's ContMix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout, plane_of
from regard.core.mechanism import Example, accumulate_dtype, repeat_heads
from regard.mechanisms.sparse.planar import Planar, Plane


@published(
    "contmix",
    family="featuremap",
    row=145,
    title="OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels",
    arxiv="2502.20087",
    year=2025,
    aliases=("context_mixing",),
    fidelity="authors' code",
    claim=(
        Claim(
            "a likeness that is the same everywhere gives each head one kernel, the same for every cell whose window "
            "ends inside of the map, and others at its border",
            cells="coarse_to_fine.context_kernels",
            holds="coarse_to_fine.is_one_kernel",
        ),
        Claim(
            "a key far outside of the window changes the weights inside",
            cells="coarse_to_fine.context_reach",
            holds="coarse_to_fine.reaches_beyond",
        ),
    ),
)
class ContextMixing(Planar):
    """Softmax over the window around each cell of a linear map of its likeness to the regions of all keys.

        A_ij = softmax over the window of i of  w_l · a_i + b_l + T[h, r_j − r_i],   a_i = s q_i · mean_R k

    R are ``bins`` regions a side, l is the place of j among the cells of the window, row by row; w and b are shared by
    the heads. These are as many groups as there are windows, each with one of them. Windows are moved inside at
    borders, as in neighbourhood attention, and cut to maps that are smaller.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, n, d)``, ``v (b, g, n, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: ``2 n bins^axes (d + w^axes) + 2 n w^axes e`` FLOPs a head, linear in the cells.

    Args:
        heads: h. windows: w of each group of heads. bins: regions along each axis. axes: 1 for lines, 2 for maps.
        scale: s, None for ``1 / sqrt(d)``.

    Raises:
        ValueError: sizes below one, heads that the windows do not divide; in a call, other heads, or a grid of other
            axes.

    Paper: Lou and Yu, arXiv 2502.20087. On maps smaller than the window the authors enlarge the map: `OverLoCK` does.
    """

    traits = replace(Planar.traits, time="linear")

    def __init__(
        self,
        heads: int = 4,
        windows: Sequence[int] = (5, 7),
        bins: int = 7,
        axes: int = 1,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if min(heads, bins, *windows) < 1 or axes not in (1, 2):
            raise wrong("heads, bins, windows, axes", f"{heads}, {bins}, {windows}, {axes}", "at least 1; 1 or 2 axes")
        if heads % len(windows):
            raise wrong("heads", str(heads), f"a multiple of the {len(windows)} windows")
        self.heads, self.windows, self.bins, self.axes, self.scale = heads, tuple(windows), bins, axes, scale
        self.slots = nn.Linear(bins**axes, sum(w**axes for w in windows))
        each = heads // len(windows)
        self.tables = nn.ParameterList(torch.zeros(each, *(2 * w - 1,) * axes) for w in windows)

    def shape_of(self, window: int) -> Plane:
        """Rows and columns of a window; a line has one row."""
        return (window if self.axes == 2 else 1), window

    def cells(self, size: int, window: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Along one axis: the cells of each window ``(size, w')``, their offsets to its cell, the slots ``(w',)``."""
        own, inside = torch.arange(size, device=device), min(window, size)
        start = (own - inside // 2).clamp(0, size - inside)
        cells = start[:, None] + torch.arange(inside, device=device)
        return cells, cells - own[:, None], (window - inside) // 2 + torch.arange(inside, device=device)

    def likeness(self, q: Tensor, k: Tensor, plane: Plane) -> Tensor:
        """a ``(b, h, m, regions)``."""
        bins = (self.bins if self.axes == 2 else 1, self.bins)
        maps = k.mT.flatten(0, 1).unflatten(2, plane)
        means = F.adaptive_avg_pool2d(maps, bins).flatten(2).unflatten(0, k.shape[:2])
        scale = q.shape[3] ** -0.5 if self.scale is None else self.scale
        return scale * q @ repeat_heads(means, q.shape[1])

    def kernels(self, q: Tensor, k: Tensor, plane: Plane) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each group of heads: the weights of the windows ``(b, h', rows, columns, w' w')``, and their cells along
        both axes ``(rows, w')``, ``(columns, w')``."""
        wide = accumulate_dtype(q.dtype)
        a = self.likeness(q.to(wide), k.to(wide), plane).chunk(len(self.windows), 1)
        first, found = 0, []
        for part, window, table in zip(a, self.windows, self.tables, strict=True):
            shape = self.shape_of(window)
            (y, dy, top), (x, dx, left) = (self.cells(n, w, q.device) for n, w in zip(plane, shape, strict=True))
            slots = first + (top[:, None] * shape[1] + left).flatten()
            logits = F.linear(part, self.slots.weight[slots].to(wide), self.slots.bias[slots].to(wide))
            places = dx[None] + window - 1
            if self.axes == 2:
                places = ((dy + window - 1)[:, None, :, None], (dx + window - 1)[None, :, None, :])
                bias = table[:, places[0], places[1]].flatten(3)
            else:
                bias = table[:, places]
            logits = logits.unflatten(2, plane) + bias.to(wide)
            found.append((torch.softmax(logits, -1), y, x))
            first += shape[0] * shape[1]
        return found

    def whole(self, q: Tensor, k: Tensor, plane: Plane) -> Tensor:
        m, parts = k.shape[2], []
        for weights, y, x in self.kernels(q, k, plane):
            at = (y[:, None, :, None] * plane[1] + x[None, :, None, :]).flatten(2).flatten(0, 1)
            a = weights.new_zeros(*weights.shape[:2], m, m)
            parts.append(a.scatter(3, at.expand(*weights.shape[:2], -1, -1), weights.flatten(2, 3)))
        return torch.cat(parts, 1)

    def run(self, q: Tensor, k: Tensor, v: Tensor, plane: Plane) -> Tensor:
        groups = repeat_heads(v, q.shape[1]).unflatten(2, plane).chunk(len(self.windows), 1)
        parts = []
        for (weights, y, x), values in zip(self.kernels(q, k, plane), groups, strict=True):
            weights, rows = weights.to(v.dtype), []
            for row, cells in enumerate(y.unbind()):  # a row of windows at a time: all would hold w² maps
                seen = values[:, :, cells][:, :, :, x].transpose(2, 3).flatten(3, 4)
                rows.append(torch.einsum("bhxl,bhxle->bhxe", weights[:, :, row], seen))
            parts.append(torch.stack(rows, 2).flatten(2, 3))
        return torch.cat(parts, 1)

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        if q.shape[1] != self.heads:
            raise wrong("q", f"{q.shape[1]} heads", f"{self.heads}, as its windows are for")
        if len(layout.grid or (1,)) != self.axes:
            raise wrong("layout.grid", str(layout.grid), f"a grid of {self.axes} axes")

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        plane, regions = plane_of(layout, shape.keys), self.bins**self.axes
        flops = 0
        for window in self.windows:
            inside = [min(w, n) for w, n in zip(self.shape_of(window), plane, strict=True)]
            slots = inside[0] * inside[1]
            flops += 2 * shape.keys * (regions * (shape.head_dim + slots) + slots * shape.values)
        each = shape.heads // len(self.windows)
        return Cost(shape.batch * each * flops, shape.io_bytes, 0)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        found = [
            Example("windows of 5 and 7, grouped", cls(4), heads=4, kv_heads=2),
            Example("one window of 6, 3 regions", cls(3, (6,), 3), heads=3, kv_heads=3),
        ]
        for place, example in enumerate(found):
            mechanism = example.mechanism
            assert isinstance(mechanism, cls)
            with torch.no_grad():
                for table in mechanism.tables:
                    table.normal_(generator=torch.Generator().manual_seed(place))
        return found
