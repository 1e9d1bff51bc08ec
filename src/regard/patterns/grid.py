"""Patterns on a grid of one, two or three axes, whose cells in row-major order are the tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.patterns.base import Bounds, Pattern, Region
from regard.patterns.line import Groups

Sizes = int | Sequence[int]


def on_axes(name: str, value: Sizes, axes: int, least: int = 1) -> tuple[int, ...]:
    """One number for each axis.

    Raises:
        ValueError: too few or many, or one below ``least``.
    """
    found = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(found) != axes or min(found) < least:
        raise wrong(name, str(value), f"one number of {least} or more, or one for each of the {axes} axes")
    return found


def as_grid(sizes: Sizes) -> tuple[int, ...]:
    """The sizes of a grid.

    Raises:
        ValueError: not one to three of them, each at least one.
    """
    found = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if not 1 <= len(found) <= 3 or min(found) < 1:
        raise wrong("grid", str(sizes), "1 to 3 sizes of at least 1")
    return found


def coordinates(tokens: Tensor, grid: Sequence[int]) -> list[Tensor]:
    """The coordinate of each token on each axis."""
    found = []
    for size in reversed(grid):
        found.append(tokens % size)
        tokens = tokens // size
    return found[::-1]


def tiles(grid: Sequence[int], tile: Sequence[int]) -> Region:
    """The cells of a grid in boxes of ``tile`` cells, those at the far borders smaller."""
    axes = [torch.arange(0, size, side) for size, side in zip(grid, tile, strict=True)]
    corners = torch.cartesian_prod(*axes).view(-1, len(grid))
    inside = torch.cartesian_prod(*(torch.arange(side) for side in tile)).view(-1, len(grid))
    # A cell beyond the border stands for the last one before it: the block repeats some of its own cells.
    places = (corners[:, None] + inside).minimum(torch.tensor(grid) - 1)
    flat = torch.zeros(places.shape[:2], dtype=torch.int64)
    for axis, size in enumerate(grid):
        flat = flat * size + places[..., axis]
    return Region(flat, run=len(grid) == 1, box=True)


def regions(
    pattern: Pattern,
    n: int,
    m: int,
    line: tuple[int, int],
    boxes: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]],
    classes: bool = False,
) -> tuple[Region, Region]:
    """Blocks of queries and of keys of the sizes ``line``; boxes, by the number of axes, where the pattern is drawn on
    a grid of several; with ``classes``, blocks of one residue class each where the pattern has a period."""
    grid = pattern.grid
    if grid is None or len(grid) == 1 or n != m or math.prod(grid) != m:
        tokens = torch.arange(m - n, m), torch.arange(m)
        if not classes or pattern.period == 1:
            return Region.runs(tokens[0], line[0]), Region.runs(tokens[1], line[1])
        sizes = (min(most, max(-(-len(x) // pattern.period), 1)) for most, x in zip(line, tokens, strict=True))
        rows, cols = (Region.classes(x, size, pattern.period) for x, size in zip(tokens, sizes, strict=True))
        return rows, cols
    rows, cols = (held(box, grid) for box in boxes[len(grid)])
    return tiles(grid, rows), tiles(grid, cols)


def held(box: Sequence[int], grid: Sequence[int]) -> tuple[int, ...]:
    """A box of as many cells, its sides powers of two, with no side twice as long as its axis or more if others have
    room: of two frames, a box of four would hold each cell twice."""
    sides = [min(side, 1 << (size - 1).bit_length()) for side, size in zip(box, grid, strict=True)]
    while math.prod(sides) < math.prod(box):
        room = [size / side for side, size in zip(sides, grid, strict=True)]
        sides[room.index(max(room))] *= 2
    return tuple(sides)


class OnGrid(Pattern):
    """The base of patterns on a grid.

    Args:
        grid: its sizes.
    """

    def __init__(self, grid: Sizes) -> None:
        self.sizes = as_grid(grid)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and repr(other) == repr(self)

    def __hash__(self) -> int:
        return hash(repr(self))

    @property
    def grid(self) -> tuple[int, ...]:
        return self.sizes

    def check(self, m: int) -> None:
        if math.prod(self.sizes) != m:
            cells = f"{self.sizes}, {math.prod(self.sizes)} cells"
            raise wrong("grid", cells, f"sizes whose product is the {m} tokens")


class Neighborhood(OnGrid):
    """The window of cells around the query, moved inside at the borders, never padded.

    On each axis of L cells, with dilation δ, the cells of one residue modulo δ form an axis of their own, on which

        leader(i) = min(⌊i / s⌋ s + ⌊s / 2⌋, L − 1),   centre = clamp(leader, ⌊w / 2⌋, L − ⌈w / 2⌉)
        j is seen if centre − ⌊w / 2⌋ ≤ j < centre + ⌈w / 2⌉

    and on a causal axis the leader is the last of its group of s queries, and j is seen if leader − w < j ≤ i.
    A window as long as the axis or longer shows all of it.

    Args:
        grid: sizes of the axes. window: w. stride: s, queries that share a window; at most w. dilation: δ.
        causal: each for all axes or one for each.

    Sources: Hassani et al., arXiv 2204.07143, 2209.15001 (dilation), 2504.16922 (stride).
    """

    def __init__(
        self,
        grid: Sizes,
        window: Sizes,
        stride: Sizes = 1,
        dilation: Sizes = 1,
        causal: bool | Sequence[bool] = False,
    ) -> None:
        super().__init__(grid)
        axes = len(self.sizes)
        self.window, self.stride = on_axes("window", window, axes), on_axes("stride", stride, axes)
        self.dilation = on_axes("dilation", dilation, axes)
        self.causal = (causal,) * axes if isinstance(causal, bool) else tuple(causal)
        if len(self.causal) != axes:
            raise wrong("causal", str(causal), f"one bool, or one for each of the {axes} axes")
        for w, s in zip(self.window, self.stride, strict=True):
            if s > w:
                raise wrong("stride", str(self.stride), f"at most the window, {self.window}")
        self.limits = [self.axis_limits(axis) for axis in range(axes)]

    def __repr__(self) -> str:
        return f"Neighborhood({self.sizes}, {self.window}, {self.stride}, {self.dilation}, {self.causal})"

    def axis_limits(self, axis: int) -> tuple[Tensor, Tensor]:
        """``(first, last)`` cell that each cell of an axis sees, by its own coordinate."""
        size, w, s, step = self.sizes[axis], self.window[axis], self.stride[axis], self.dilation[axis]
        cell = torch.arange(size)
        residue, place = cell % step, cell // step
        length = (size - 1 - residue) // step + 1
        if self.causal[axis]:
            leader = (place // s * s + s - 1).minimum(length - 1)
            first, last = (leader - w + 1).clamp(min=0), place
        else:
            leader = (place // s * s + s // 2).minimum(length - 1)
            left, right = w // 2, w - w // 2 - 1
            centre = leader.maximum(torch.tensor(left)).minimum(length - 1 - right)
            wide = length <= w
            first = torch.where(wide, 0, centre - left)
            last = torch.where(wide, length - 1, centre + right)
        return first * step + residue, last * step + residue

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        found = torch.ones((), dtype=torch.bool, device=j.device)
        places = zip(coordinates(i, self.sizes), coordinates(j, self.sizes), strict=True)
        for axis, (a, b) in enumerate(places):
            first, last = (x.to(j.device)[a] for x in self.limits[axis])
            found = found & (first <= b) & (b <= last)
            if self.dilation[axis] > 1:
                found = found & ((a - b) % self.dilation[axis] == 0)
        return found

    def bounds(self, queries: Region, keys: Region, m: int) -> Bounds:
        shape = (len(queries.tokens), len(keys.tokens))
        some = torch.ones(shape, dtype=torch.bool, device=keys.tokens.device)
        every = some.clone()
        places = zip(coordinates(queries.tokens, self.sizes), coordinates(keys.tokens, self.sizes), strict=True)
        for axis, (a, b) in enumerate(places):
            first, last = (x.to(b.device)[a] for x in self.limits[axis])
            low, high = b.amin(1), b.amax(1)
            some &= (first.amin(1)[:, None] <= high) & (last.amax(1)[:, None] >= low)
            within = (first.amax(1)[:, None] <= low) & (last.amin(1)[:, None] >= high)
            if (step := self.dilation[axis]) > 1:
                alone = (low == high) & (a.amin(1) == a.amax(1))[:, None]
                within &= alone & ((a.amin(1)[:, None] - low) % step == 0)
            every &= within
        boxes = (queries.box or len(self.sizes) == 1) and (keys.box or len(self.sizes) == 1)
        undilated = all(step == 1 for step in self.dilation)
        return Bounds.exactly(some, every) if boxes and undilated else Bounds.at_most(some, every)

    def pairs(self, n: int, m: int | None = None) -> int:
        """The product over the axes of the pairs on each: a closed form."""
        m = n if m is None else m
        self.check(m)
        if n != m:
            return Pattern.pairs(self, n, m)
        counts = (((last - first) // d + 1).sum() for (first, last), d in zip(self.limits, self.dilation, strict=True))
        return math.prod(int(x) for x in counts)

    def future(self, j: Tensor, i: int) -> Tensor:
        if len(self.sizes) > 1 or not self.causal[0]:
            return torch.ones_like(j, dtype=torch.bool)
        return i - j < self.window[0] * self.dilation[0]


class Tiles(OnGrid, Groups):
    """The query's own box of ``tile`` cells; the first ones of each axis are ``shift`` cells long where that is not
    0."""

    ordered = False

    def __init__(self, grid: Sizes, tile: Sizes, shift: Sizes = 0) -> None:
        super().__init__(grid)
        self.tile = on_axes("tile", tile, len(self.sizes))
        self.shift = on_axes("shift", shift, len(self.sizes), 0)

    def __repr__(self) -> str:
        return f"Tiles({self.sizes}, {self.tile}{f', {self.shift}' if any(self.shift) else ''})"

    def group(self, tokens: Tensor, m: int) -> Tensor:
        found, places = torch.zeros_like(tokens), coordinates(tokens, self.sizes)
        for place, size, side, shift in zip(places, self.sizes, self.tile, self.shift, strict=True):
            before = -shift % side
            found = found * -(-(size + before) // side) + (place + before) // side
        return found


class GridTokens(OnGrid, Groups):
    """The cells in the query's place of every tile: a grid of tokens ``tile`` cells apart."""

    ordered = False

    def __init__(self, grid: Sizes, tile: Sizes) -> None:
        super().__init__(grid)
        self.tile = on_axes("tile", tile, len(self.sizes))

    def __repr__(self) -> str:
        return f"GridTokens({self.sizes}, {self.tile})"

    def group(self, tokens: Tensor, m: int) -> Tensor:
        found = torch.zeros_like(tokens)
        for place, side in zip(coordinates(tokens, self.sizes), self.tile, strict=True):
            found = found * side + place % side
        return found


class Same(OnGrid, Groups):
    """The cells that share the query's coordinate on one axis: its frame, its view, its row."""

    ordered = False

    def __init__(self, grid: Sizes, axis: int = 0) -> None:
        super().__init__(grid)
        if not 0 <= axis < len(self.sizes):
            raise wrong("axis", str(axis), f"0 to {len(self.sizes) - 1}")
        self.axis = axis

    def __repr__(self) -> str:
        return f"Same({self.sizes}, {self.axis})"

    def group(self, tokens: Tensor, m: int) -> Tensor:
        return coordinates(tokens, self.sizes)[self.axis]


class Plane(OnGrid):
    """The cells with one of the given coordinates on an axis, as keys of all: the first frame, reference frames."""

    def __init__(self, grid: Sizes, places: Sequence[int] | int = 0, axis: int = 0) -> None:
        super().__init__(grid)
        self.places, self.axis = (places,) if isinstance(places, int) else tuple(places), axis
        if not 0 <= axis < len(self.sizes):
            raise wrong("axis", str(axis), f"0 to {len(self.sizes) - 1}")
        if any(not 0 <= place < self.sizes[axis] for place in self.places):
            raise wrong("places", str(places), f"0 to {self.sizes[axis] - 1}")

    def __repr__(self) -> str:
        return f"Plane({self.sizes}, {self.places}, {self.axis})"

    def chosen(self, tokens: Tensor) -> Tensor:
        wanted = torch.tensor(self.places, device=tokens.device)
        return torch.isin(coordinates(tokens, self.sizes)[self.axis], wanted)

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        return self.chosen(j) & torch.ones_like(i, dtype=torch.bool)

    def bounds(self, queries: Region, keys: Region, m: int) -> Bounds:
        found, shape = self.chosen(keys.tokens), (len(queries.tokens), len(keys.tokens))
        return Bounds.exactly(found.any(1).expand(shape), found.all(1).expand(shape))


class Radial(OnGrid):
    """Frames that are further apart see each other through narrower bands, and from some distance on only some do.

        t = |frame_i − frame_j|,   decay(t) = 2^(bits(tokens of a frame) − bits(t))
        width(t) = max(factor decay(t), least)
        seen if t ≤ 1; or |place_i − place_j| ≤ width(t) and t is a multiple of ⌊least / decay(t)⌋ or decay(t) ≥ least;
        and the first frame always

    bits(x) = ⌊log2 x⌋ + 1. The last frame may be cut short.

    Args:
        grid: ``(frames, tokens)`` or ``(frames, height, width)``. least: the narrowest band, a block of the kernel.
            factor: of the bands' widths, above 0.

    Source: Li et al. (Radial Attention), arXiv 2506.19852; `RoundedRadial` rounds to blocks by their density.
    """

    def __init__(self, grid: Sizes, least: int = 1, factor: float = 0.5) -> None:
        super().__init__(grid)
        if len(self.sizes) < 2:
            raise wrong("grid", str(grid), "frames, and the sizes of a frame")
        if least < 1:
            raise wrong("least", str(least), "1 or more")
        if not factor > 0:
            raise wrong("factor", str(factor), "above 0")
        self.tokens, self.least, self.factor = math.prod(self.sizes[1:]), least, factor
        self.width = torch.tensor([self.width_at(t) for t in range(self.sizes[0])])

    def __repr__(self) -> str:
        return f"Radial({self.sizes}, {self.least}, {self.factor})"

    def width_at(self, t: int) -> int:
        """The largest distance of places that frames ``t`` apart show, −1 for none."""
        if t <= 1:
            return self.tokens
        decay = 2.0 ** (self.tokens.bit_length() - t.bit_length())
        kept = decay >= self.least or t % int(self.least / decay) == 0
        return int(max(self.factor * decay, self.least)) if kept else -1

    def check(self, m: int) -> None:
        if not math.prod(self.sizes) - self.tokens < m <= math.prod(self.sizes):
            raise wrong("grid", str(self.sizes), f"frames whose cells are the {m} tokens, the last perhaps cut short")

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        apart = (i // self.tokens - j // self.tokens).abs()
        near = (i % self.tokens - j % self.tokens).abs() <= self.width.to(j.device)[apart]
        return near | (j < self.tokens)

    def bounds(self, queries: Region, keys: Region, m: int) -> Bounds:
        size = self.tokens
        a, b = (torch.stack([region.low, region.high]) for region in (queries, keys))
        first, last = a[0][:, None] // size - b[1] // size, a[1][:, None] // size - b[0] // size  # frames apart
        nearest = torch.where((first <= 0) & (last >= 0), 0, first.abs().minimum(last.abs()))
        farthest = first.abs().maximum(last.abs())
        kept = torch.nn.functional.pad((self.width >= 0).cumsum(0), (1, 0))
        some = (kept[farthest + 1] > kept[nearest]) | (b[0] < size)
        # Two blocks that each lie in one frame: only the distance of their places counts.
        single = ((a[0] // size == a[1] // size)[:, None]) & (b[0] // size == b[1] // size)
        (p_low, p_high), (k_low, k_high) = a % size, b % size
        width = torch.where(b[1] < size, size, self.width[nearest])
        least = (p_low[:, None] - k_high).maximum(k_low - p_high[:, None]).clamp(min=0)
        most = (p_high[:, None] - k_low).maximum(k_high - p_low[:, None])
        some = torch.where(single, least <= width, some)
        every = single & (most <= width)
        whole = min(queries.tokens.shape[1], keys.tokens.shape[1]) >= 2 * size  # all places of some frame in each
        sure = torch.where(single | whole, some, False) if queries.run and keys.run else every
        return Bounds(sure, some, every, torch.where(single & queries.run & keys.run, every, some))
