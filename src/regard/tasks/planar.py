"""Points in the plane with orders that are known: convex hulls, shortest tours, triangulations."""

from __future__ import annotations

from itertools import combinations

import torch
from scipy.spatial import Delaunay
from torch import Generator, Tensor

from regard.core.errors import wrong

MOST = 12
"""Points of a tour, whose subsets are all looked at."""


def points(count: int, size: int, generator: Generator) -> Tensor:
    """Points ``(count, size, 2)`` of the unit square, in float64."""
    return torch.rand(count, size, 2, dtype=torch.float64, generator=generator)


def hull(given: Tensor) -> list[int]:
    """Corners of the convex hull of ``(n, 2)``, counterclockwise from the lowest number, by monotone chains."""
    order = sorted(range(len(given)), key=lambda i: given[i].tolist())
    corners: list[int] = []
    for way in (order, order[::-1]):
        start = len(corners)
        for i in way:
            while len(corners) - start >= 2 and turn(*given[[*corners[-2:], i]]) <= 0:
                corners.pop()
            corners.append(i)
        corners.pop()
    first = corners.index(min(corners))
    return corners[first:] + corners[:first]


def turn(a: Tensor, b: Tensor, c: Tensor) -> float:
    """Twice the area of a triangle, above zero where it is counterclockwise."""
    (x, y), (u, v) = (b - a).tolist(), (c - a).tolist()
    return x * v - y * u


def tour(given: Tensor) -> list[int]:
    """The shortest way from the first of ``(n, 2)`` through all others and back, by dynamic programming over subsets.

    The way round is the one whose second place has the lower number. Cost: O(n² 2ⁿ).

    Raises:
        ValueError: fewer than three points, or more than 12.
    """
    n, apart = len(given), torch.cdist(given, given).tolist()
    if not 3 <= n <= MOST:
        raise wrong("given", f"{n} points", f"3 to {MOST}")
    best = {(frozenset((i,)), i): (apart[0][i], [0, i]) for i in range(1, n)}
    for size in range(2, n):
        for subset in map(frozenset, combinations(range(1, n), size)):
            for last in subset:
                rest = subset - {last}
                ways = ((best[rest, i][0] + apart[i][last], best[rest, i][1]) for i in rest)
                length, way = min(ways, key=lambda each: each[0])
                best[subset, last] = (length, [*way, last])
    every = frozenset(range(1, n))
    _, way = min((best[every, i][0] + apart[i][0], best[every, i][1]) for i in every)
    return way if way[1] < way[-1] else [0, *way[:0:-1]]


def length(given: Tensor, way: list[int]) -> float:
    """Of a tour, back to its first place."""
    around = given[way]
    return (around - around.roll(-1, 0)).norm(dim=1).sum().item()


def triangulation(given: Tensor) -> list[tuple[int, int, int]]:
    """The triangles of Delaunay's triangulation of ``(n, 2)``, each of rising numbers, in the order of words."""
    return sorted(tuple(sorted(map(int, corners))) for corners in Delaunay(given.numpy()).simplices)  # pyright: ignore
