"""Neighbourhood attention: limits, residues, shifts, simulated tiles, and its speed beside gathering."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import regard
from regard import patterns as p
from regard.experiments.timing import interleaved
from regard.kernels.block_sparse import plan as block_sparse
from regard.mechanisms.sparse.neighborhood import simulate

EXACT = {"atol": 1e-12, "rtol": 0}
CPU = torch.device("cpu")


def draw(grid, heads=2, dim=8, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(1, heads, math.prod(grid), dim, dtype=dtype) for _ in range(3)]


def on(grid):
    return regard.Layout(grid=grid)


def test_window_as_wide_as_the_map_is_full_attention():
    """NAT: k as wide as the map is full attention, with its relative bias."""
    grid = (5, 7)
    q, k, v = draw(grid)
    want = F.scaled_dot_product_attention(q, k, v)
    got = regard.build("neighborhood", window=grid)(q, k, v, on(grid))
    torch.testing.assert_close(got, want, **EXACT)
    biased = regard.build("nat", heads=2, axes=2, window=grid).double()
    row, col = torch.arange(35) // 7, torch.arange(35) % 7
    table = biased.table[:, row[:, None] - row + 4, col[:, None] - col + 6]
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=table[None])
    torch.testing.assert_close(biased(q, k, v, on(grid)), want, **EXACT)


def test_relative_bias_by_brute_force():
    """NAT: bias and window equal the reference cell by cell, with the gradient of the bias."""
    grid, window = (6, 9), 3
    q, k, v = draw(grid)
    nat = regard.build("nat", heads=2, axes=2, window=window).double()
    got = nat(q, k, v, on(grid))
    torch.testing.assert_close(got, nat.weights(q, k, on(grid)) @ v, **EXACT)
    scores = torch.full((2, 54, 54), -torch.inf, dtype=torch.float64)
    for a, b in itertools.product(range(54), repeat=2):
        (r, c), (s, t) = divmod(a, 9), divmod(b, 9)
        top, left = min(max(r - 1, 0), 3), min(max(c - 1, 0), 6)
        if top <= s < top + 3 and left <= t < left + 3:
            dot = (q[0, :, a] * k[0, :, b]).sum(-1) * 8**-0.5
            scores[:, a, b] = dot + nat.table[:, r - s + 2, c - t + 2].detach()
    torch.testing.assert_close(got[0], torch.softmax(scores, -1) @ v[0], **EXACT)
    (gradient,) = torch.autograd.grad(got.square().sum(), nat.table)
    assert gradient.abs().min() > 0


def test_shifts_in_the_interior():
    """NAT: shifting the map shifts the output, away from its borders."""
    grid, size = (14, 14), 14
    q, k, v = (x.view(1, 2, size, size, 8) for x in draw(grid))
    mechanism = regard.build("neighborhood", window=(5, 5))

    def run(*maps):
        return mechanism(*(x.reshape(1, 2, -1, 8) for x in maps), on(grid)).view(1, 2, size, size, 8)

    moved = run(*(x.roll((1, 2), (2, 3)) for x in (q, k, v)))
    inside = slice(4, 10)
    want = run(q, k, v).roll((1, 2), (2, 3))[:, :, inside, inside]
    torch.testing.assert_close(moved[:, :, inside, inside], want, **EXACT)


def test_dilation_is_neighbourhoods_of_residues():
    """DiNA: equals neighbourhood attention on each grid of equal residue; dilation 1 is plain."""
    grid, step = (9, 11), 3
    q, k, v = draw(grid)
    got = regard.build("dina", window=3, dilation=step)(q, k, v, on(grid)).view(1, 2, *grid, 8)
    for r, c in itertools.product(range(step), repeat=2):
        part = [x.view(1, 2, *grid, 8)[:, :, r::step, c::step] for x in (q, k, v)]
        small = tuple(part[0].shape[2:4])
        want = regard.build("neighborhood", window=3)(*(x.reshape(1, 2, -1, 8) for x in part), on(small))
        torch.testing.assert_close(got[:, :, r::step, c::step], want.view(1, 2, *small, 8), **EXACT)
    plain = regard.build("dina", window=3, dilation=1)(q, k, v, on(grid))
    torch.testing.assert_close(plain, regard.build("neighborhood", window=3)(q, k, v, on(grid)), **EXACT)


def test_local_and_dilated_reach_the_map():
    """DiNAT: a dilated and then a local layer reach the whole map when k · k is its side."""
    grid, total = (25, 25), 625
    local, dilated = (p.Neighborhood(grid, 5, dilation=d).dense(total)[0].float() for d in (1, 5))
    assert ((local @ dilated) > 0).all()
    # The other way round the windows at the border leave a few out, since they do not reach past it.
    assert 0.9 < ((dilated @ local) > 0).double().mean() < 1


def test_strides_from_sliding_to_blocked():
    """GNA: stride 1 is neighbourhood attention, stride w is attention in blocks."""
    grid = (12, 8)
    q, k, v = draw(grid)
    plain = regard.build("neighborhood", window=4)(q, k, v, on(grid))
    torch.testing.assert_close(regard.build("gna", window=4, stride=1)(q, k, v, on(grid)), plain, **EXACT)
    blocked = regard.build("gna", window=4, stride=4)(q, k, v, on(grid))
    torch.testing.assert_close(blocked, block_sparse.attend(q, k, v, p.Tiles(grid, 4)), **EXACT)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize(("rows", "cols"), [((4, 4), (2, 4)), ((8, 2), (4, 4)), ((5, 3), (3, 5))])
def test_simulated_tiles(stride, rows, cols):
    """GNA: the simulator's tiles equal those of the dense mask."""
    pattern = p.Neighborhood((16, 12), 4, stride)
    mask = pattern.dense(192)[0].view(16, 12, 16, 12)
    count = 0
    for a, b in itertools.product(range(0, 16, rows[0]), range(0, 12, rows[1])):
        for c, d in itertools.product(range(0, 16, cols[0]), range(0, 12, cols[1])):
            count += bool(mask[a : a + rows[0], b : b + rows[1], c : c + cols[0], d : d + cols[1]].any())
    found = simulate(pattern, rows, cols)
    tiles = [math.ceil(16 / side[0]) * math.ceil(12 / side[1]) for side in (rows, cols)]
    assert (found.visited, found.total) == (count, tiles[0] * tiles[1])


def gathered(q, k, v, grid, window):
    """Every query's own keys gathered, as plain PyTorch code does it."""
    mask = p.Neighborhood(grid, window).dense(math.prod(grid))[0]
    index = mask.nonzero()[:, 1].view(len(mask), -1)
    return lambda: (
        torch.softmax(torch.einsum("bhnd,bhnkd->bhnk", q, k[:, :, index]) * q.shape[-1] ** -0.5, -1)[..., None, :]
        @ v[:, :, index]
    )[..., 0, :]


@pytest.mark.slow
def test_speed(record_property):
    """Fused neighbourhoods of k = 13 take ≤ 0.35 of dense attention, gathering at least 3 times as long."""
    torch.set_num_threads(1)
    grid, ratios = (64, 64), {}
    q, k, v = draw(grid, heads=8, dim=64, dtype=torch.float32)
    fused = {w: regard.build("neighborhood", window=w) for w in (7, 13)}
    for w, mechanism in fused.items():
        ratio = interleaved(
            lambda mechanism=mechanism: mechanism(q, k, v, on(grid)),
            lambda: F.scaled_dot_product_attention(q, k, v),
            CPU,
            seconds=4,
        )
        ratios[w] = ratio.median
        record_property(f"k = {w}", f"{ratio.median:.2f} of dense, {ratio.seconds * 1e3:.0f} ms")
        bound = simulate(p.Neighborhood(grid, w), *block_sparse.TILES[2]).bound
        record_property(f"bound of tiles, k = {w}", f"{1 / bound:.3f}")
        assert 1 / ratio.median <= bound
    slow = gathered(q, k, v, grid, 13)
    torch.testing.assert_close(slow(), fused[13](q, k, v, on(grid)), atol=1e-4, rtol=1e-4)
    ratio = interleaved(slow, lambda: fused[13](q, k, v, on(grid)), CPU, seconds=8)
    record_property("gathering, k = 13", f"{ratio.median:.1f} times as long")
    assert ratios[13] <= 0.35
    assert ratio.median >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["neighborhood", "nat"])
def test_time_is_linear(name, record_property):
    """NAT: over two doublings, twice the cells take less than 2.3 times as long on average."""
    torch.set_num_threads(1)
    mechanism = regard.build(name, window=7) if name == "neighborhood" else regard.build(name, axes=2)
    times = []
    for grid in ((64, 128), (128, 128), (128, 256)):
        q, k, v = draw(grid, heads=4, dim=32, dtype=torch.float32)
        with torch.no_grad():
            run = interleaved(lambda x=(q, k, v), g=grid: mechanism(*x, on(g)), lambda: None, CPU, seconds=4)
        times.append(run.seconds)
    growth = [b / a for a, b in itertools.pairwise(times)]
    record_property("growth", ", ".join(f"{x:.2f}" for x in growth))
    assert (times[-1] / times[0]) ** 0.5 < 2.3
