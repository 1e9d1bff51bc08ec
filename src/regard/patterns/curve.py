"""Curves that fill a grid, so that tokens which are near on the curve are near in space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from regard.patterns.grid import as_grid

Vector = tuple[int, int, int]


@lru_cache(maxsize=8)
def along_curve(grid: tuple[int, ...]) -> Tensor:
    """``(cells,)`` int64: the cells of a grid, numbered in row-major order, as a generalised Hilbert curve meets them.

    Neighbours on the curve are neighbours in the grid, but for a few steps across a corner where sizes are odd.

    Source: Červený's generalisation of the Hilbert curve to any box ("gilbert", 2018). Boxes are cut in halves along
    their longest side, or in three or five parts, and each part is walked in its own direction.
    """
    sizes = as_grid(grid)
    frames, height, width = (1,) * (3 - len(sizes)) + sizes
    sides = {"x": (width, 0, 0), "y": (0, height, 0), "z": (0, 0, frames)}
    longest = "x" if width >= max(height, frames) else "y" if height >= frames else "z"
    first, second, third = {"x": "xyz", "y": "yxz", "z": "zxy"}[longest]
    cells = walked((0, 0, 0), sides[first], sides[second], sides[third])
    return torch.tensor([x + width * (y + height * z) for x, y, z in cells], dtype=torch.int64)


def walked(at: Vector, a: Vector, b: Vector, c: Vector) -> Iterator[Vector]:
    """The cells of a box with a corner ``at`` and the sides a, b and c, from that corner to the one at the end of a."""
    sizes = [abs(sum(side)) for side in (a, b, c)]
    for side, size, others in ((a, sizes[0], sizes[1:]), (b, sizes[1], sizes[::2]), (c, sizes[2], sizes[:2])):
        if others == [1, 1]:
            yield from (plus(at, [step * one for one in unit(side)]) for step in range(size))
            return
    (w, h, d), (da, db, dc) = sizes, (unit(side) for side in (a, b, c))
    a2, b2, c2 = (half(side) for side in (a, b, c))
    if 2 * w > 3 * max(h, d):
        parts = [(at, a2, b, c), (plus(at, a2), minus(a, a2), b, c)]
    elif 3 * h > 4 * d:
        end = plus(at, minus(a, da), minus(b2, db))
        parts = [
            (at, b2, c, a2),
            (plus(at, b2), a, minus(b, b2), c),
            (end, minus(b2), c, minus(a2, a)),
        ]
    elif 3 * d > 4 * h:
        end = plus(at, minus(a, da), minus(c2, dc))
        parts = [
            (at, c2, a2, b),
            (plus(at, c2), a, b, minus(c, c2)),
            (end, minus(c2), minus(a2, a), b),
        ]
    else:
        high, across = minus(c, dc), minus(a, da)
        parts = [
            (at, b2, c2, a2),
            (plus(at, b2), c, a2, minus(b, b2)),
            (plus(at, minus(b2, db), high), a, minus(b2), minus(c2, c)),
            (plus(at, across, b2, high), minus(c), minus(a2, a), minus(b, b2)),
            (plus(at, across, minus(b2, db)), minus(b2), c2, minus(a2, a)),
        ]
    for part in parts:
        yield from walked(*part)


def unit(side: Sequence[int]) -> Vector:
    """One step along a side."""
    x, y, z = ((value > 0) - (value < 0) for value in side)
    return x, y, z


def half(side: Vector) -> Vector:
    """Half of a side, an even number of steps where it is longer than two."""
    x, y, z = (value // 2 for value in side)
    found, size = (x, y, z), abs(sum(side))
    return plus(found, unit(side)) if abs(x + y + z) % 2 and size > 2 else found


def plus(*vectors: Sequence[int]) -> Vector:
    """Their sum."""
    x, y, z = (sum(parts) for parts in zip(*vectors, strict=True))
    return x, y, z


def minus(a: Vector, b: Vector | None = None) -> Vector:
    """``a − b``, or −a."""
    x, y, z = (p - q for p, q in zip(a, b, strict=True)) if b is not None else (-p for p in a)
    return x, y, z
