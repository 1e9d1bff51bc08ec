"""Neighbourhood attention: limits, residues, shifts, simulated tiles, and its speed beside gathering."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import regard
from regard import patterns as p
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.core.layout import Layout
from regard.experiments.timing import interleaved
from regard.kernels.block_sparse import plan as block_sparse
from regard.mechanisms.sparse.neighborhood import NeighborhoodBias, simulate

CPU = torch.device("cpu")


def draw(grid: tuple[int, ...], heads: int = 2, dim: int = 8, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, heads, math.prod(grid), dim, dtype=dtype) for _ in range(3)]


def on(grid: tuple[int, ...]) -> Layout:
    return Layout(grid=grid)


def largest(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@measured()
def wide() -> dict[str, float]:
    """How far a window as wide as the map is from full attention, without and with relative bias."""
    grid = (5, 7)
    q, k, v = draw(grid)
    plain = largest(
        regard.build("neighborhood", window=grid)(q, k, v, on(grid)), F.scaled_dot_product_attention(q, k, v)
    )
    biased = NeighborhoodBias(heads=2, axes=2, window=grid).double()
    row, col = torch.arange(35) // 7, torch.arange(35) % 7
    table = biased.table[:, row[:, None] - row + 4, col[:, None] - col + 6]
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=table[None])
    return {"apart": max(plain, largest(biased(q, k, v, on(grid)), want))}


@measured()
def by_cells() -> dict[str, float]:
    """How far windows with bias are from the reference cell by cell."""
    grid, n = (6, 9), 54
    q, k, v = draw(grid)
    nat = NeighborhoodBias(heads=2, axes=2, window=3).double()
    scores = torch.full((2, n, n), -torch.inf, dtype=torch.float64)
    for a, b in itertools.product(range(n), repeat=2):
        (r, c), (s, t) = divmod(a, 9), divmod(b, 9)
        top, left = min(max(r - 1, 0), 3), min(max(c - 1, 0), 6)
        if top <= s < top + 3 and left <= t < left + 3:
            dot = (q[0, :, a] * k[0, :, b]).sum(-1) * 8**-0.5
            scores[:, a, b] = dot + nat.table[:, r - s + 2, c - t + 2].detach()
    return {"apart": largest(nat(q, k, v, on(grid))[0], torch.softmax(scores, -1) @ v[0])}


@measured()
def shifts() -> dict[str, float]:
    """How far the output of a shifted map is from the shifted output, away from the borders."""
    size = 14
    maps = [x.view(1, 2, size, size, 8) for x in draw((size, size))]
    mechanism = regard.build("neighborhood", window=(5, 5))

    def run(given: list[Tensor]) -> Tensor:
        q, k, v = (x.reshape(1, 2, -1, 8) for x in given)
        return mechanism(q, k, v, on((size, size))).view(1, 2, size, size, 8)

    moved, inside = run([x.roll((1, 2), (2, 3)) for x in maps]), slice(4, 10)
    return {"apart": largest(moved[:, :, inside, inside], run(maps).roll((1, 2), (2, 3))[:, :, inside, inside])}


@measured()
def residues() -> dict[str, float]:
    """How far dilated neighbourhoods are from those on each grid of equal residue, and a dilation of one from none."""
    grid, step = (9, 11), 3
    q, k, v = draw(grid)
    got, worst = regard.build("dina", window=3, dilation=step)(q, k, v, on(grid)).view(1, 2, *grid, 8), 0.0
    for r, c in itertools.product(range(step), repeat=2):
        part = [x.view(1, 2, *grid, 8)[:, :, r::step, c::step] for x in (q, k, v)]
        small = (part[0].shape[2], part[0].shape[3])
        a, b, d = (x.reshape(1, 2, -1, 8) for x in part)
        want = regard.build("neighborhood", window=3)(a, b, d, on(small))
        worst = max(worst, largest(got[:, :, r::step, c::step], want.view(1, 2, *small, 8)))
    plain = regard.build("dina", window=3, dilation=1)(q, k, v, on(grid))
    return {"apart": max(worst, largest(plain, regard.build("neighborhood", window=3)(q, k, v, on(grid))))}


@measured()
def reach() -> dict[str, float]:
    """The share of pairs of 25 × 25 cells that a dilated and a local layer of k = 5 reach, in both orders."""
    local, dilated = (p.Neighborhood((25, 25), 5, dilation=d).dense(625)[0].float() for d in (1, 5))
    orders = {"dilated_first": local @ dilated, "local_first": dilated @ local}
    return {name: (seen > 0).double().mean().item() for name, seen in orders.items()}


def reaches_the_map(found: Figures) -> Finding:
    """All with the dilated layer first."""
    first, other = found.one("dilated_first"), found.one("local_first")
    return Finding.of(f"{first:.0%} of all pairs at 25 × 25, k = 5; {other:.1%} with the local layer first", first == 1)


@measured()
def strides() -> dict[str, float]:
    """How far a stride of 1 is from neighbourhoods, and one of the window from attention in blocks."""
    grid = (12, 8)
    q, k, v = draw(grid)
    plain = regard.build("neighborhood", window=4)(q, k, v, on(grid))
    blocked = block_sparse.attend(q, k, v, p.Tiles(grid, 4))
    ends = ((1, plain), (4, blocked))
    found = [largest(regard.build("gna", window=4, stride=s)(q, k, v, on(grid)), want) for s, want in ends]
    return {"apart": max(found)}


@measured(stride=(1, 2, 4), tiles=("4 4 2 4", "8 2 4 4", "5 3 3 5"))
def counted(stride: int, tiles: str) -> dict[str, bool]:
    """Whether the simulator's count of tiles is that of the dense mask."""
    a, b, c, d = map(int, tiles.split())
    pattern = p.Neighborhood((16, 12), 4, stride)
    mask, rows, cols = pattern.dense(192)[0].view(16, 12, 16, 12), (a, b), (c, d)
    count = 0
    for i, j in itertools.product(range(0, 16, a), range(0, 12, b)):
        for x, y in itertools.product(range(0, 16, c), range(0, 12, d)):
            count += bool(mask[i : i + a, j : j + b, x : x + c, y : y + d].any())
    found = simulate(pattern, rows, cols)
    total = math.prod(math.ceil(16 / side[0]) * math.ceil(12 / side[1]) for side in (rows, cols))
    return {"exact": (found.visited, found.total) == (count, total)}


def gathered(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], window: int) -> Callable[[], Tensor]:
    """Every query's own keys gathered, as plain PyTorch code does it."""
    mask = p.Neighborhood(grid, window).dense(math.prod(grid))[0]
    index = mask.nonzero()[:, 1].view(len(mask), -1)
    return lambda: (
        torch.softmax(torch.einsum("bhnd,bhnkd->bhnk", q, k[:, :, index]) * q.shape[-1] ** -0.5, -1)[..., None, :]
        @ v[:, :, index]
    )[..., 0, :]


@measured(window=(7, 13))
def speed(window: int) -> dict[str, float]:
    """64 × 64 cells: time over dense attention's, of gathering over its own, and the least share that tiles allow."""
    grid = (64, 64)
    q, k, v = draw(grid, heads=8, dim=64, dtype=torch.float32)
    fused = partial(regard.build("neighborhood", window=window), q, k, v, on(grid))
    dense = interleaved(fused, lambda: F.scaled_dot_product_attention(q, k, v), CPU, seconds=4).median
    gathering = interleaved(gathered(q, k, v, grid, window), fused, CPU, seconds=8).median
    bound = simulate(p.Neighborhood(grid, window), *block_sparse.TILES[2]).bound
    return {"dense": dense, "gathering": gathering, "bound": 1 / bound}


def is_fast(found: Figures) -> Finding:
    """With k = 13 at most 0.35 of dense attention, gathering over 3 times as long."""
    dense, gathering = found("dense"), found.one("gathering", window=13)
    figure = f"64 × 64 cells, k = 7 and 13: {listed(dense, '.2f')} of dense; gathering {gathering:.1f} times as long"
    return Finding.of(figure, dense[1] <= 0.35, gathering >= 3)


def is_bounded(found: Figures) -> Finding:
    """Never faster than the simulator's bound."""
    dense, bound = found("dense"), found("bound")
    figure = f"time over dense attention's {listed(dense, '.2f')}, bound by tiles {listed(bound, '.3f')}"
    return Finding.of(figure, all(a >= b for a, b in zip(dense, bound, strict=True)))


@measured(name=("neighborhood", "nat"))
def growth(name: str) -> dict[str, float]:
    """How many times as long twice the cells take, over two doublings from 64 × 128."""
    mechanism = regard.build(name, window=7) if name == "neighborhood" else regard.build(name, axes=2)
    times = []
    for grid in ((64, 128), (128, 128), (128, 256)):
        q, k, v = draw(grid, heads=4, dim=32, dtype=torch.float32)
        with torch.no_grad():
            times.append(interleaved(partial(mechanism, q, k, v, on(grid)), lambda: None, CPU, seconds=4).seconds)
    return {"ratio": (times[2] / times[0]) ** 0.5}
