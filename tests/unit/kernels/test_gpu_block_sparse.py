"""The Triton kernels over block lists, under its interpreter, against masked dense attention."""

import pytest
import torch

from regard import patterns as p
from regard.kernels import chosen
from regard.kernels import device as gpu
from regard.kernels.block_sparse import lists
from regard.kernels.block_sparse import plan as block_sparse
from regard.patterns.choice import Rows
from regard.patterns.cover import Cover
from regard.routers.blocks import Mean

from .test_block_sparse import agree, batched, draw, masked

triton_kernels = pytest.importorskip("regard.kernels.block_sparse.triton", reason="Triton is not built for this system")

TEXTS = [
    *("Causal & Window(37)", "Causal & (Window(9) | Sinks(3) | Power(7))", "Random(0.2, block=8)", "~Window(20)"),
    *("PerHead(Window(5), Blocks(16, 8), Sinks(0))", "Sinks(0)", "Blocks(64) | Sinks(2)"),
]


def on_gpu(q, k, v, pattern):
    """What `attend_lse` does on CUDA."""
    n, m, blind = block_sparse.fitting(pattern, q, k)
    return block_sparse.run_on_gpu(q, k, v, lists.planned(pattern, n, m, q.device), blind, None)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("n", "m", "groups"), [(130, 130, 3), (1, 77, 3), (70, 141, 1), (50, 20, 3), (3, 3, 3)])
def test_equals_masked_dense_attention(text, n, m, groups):
    pattern = p.parse_pattern(text)
    q, k, v = draw(n, m, groups=groups)
    agree(q, k, v, on_gpu(q, k, v, pattern).out, masked(q, k, v, pattern.dense(n, m)))
    part = on_gpu(q, k, v, pattern)
    want = block_sparse.attend_lse(q, k, v, pattern).lse
    seen = want > -torch.inf
    assert torch.equal(part.lse > -torch.inf, seen)
    for a, b in zip(*(torch.autograd.grad(x[seen].sum(), (q, k)) for x in (part.lse, want)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("pattern", [p.Neighborhood((9, 11), 5, dilation=(1, 2)), p.Neighborhood((5, 4, 6), 3)])
def test_grids_run_in_boxes(pattern):
    n = pattern.grid[0] * pattern.grid[1] * (pattern.grid[2] if len(pattern.grid) > 2 else 1)
    q, k, v = draw(n)
    agree(q, k, v, on_gpu(q, k, v, pattern).out, masked(q, k, v, pattern.dense(n)))


@pytest.mark.parametrize("causal", [False, True])
def test_a_routers_lists_of_any_block_size(causal, monkeypatch):
    """The public call takes this path where tensors are said to be on a GPU."""
    monkeypatch.setattr(gpu, "usable", lambda x: True)
    index = torch.randint(-1, 5, (3, 7, 2), generator=torch.Generator().manual_seed(1))
    cover = Cover.from_index(index, 70, 90, 10, 20)
    q, k, v = draw(70, 90)
    got = block_sparse.attend_blocks(q, k, v, cover, causal).out
    monkeypatch.undo()
    want = block_sparse.attend_blocks(q, k, v, cover, causal).out
    agree(q, k, v, got, want)


@pytest.mark.parametrize("heads", [1, 3])
def test_lists_of_each_sequence(heads, monkeypatch):
    monkeypatch.setattr(gpu, "usable", lambda x: True)
    cover, mask = batched(heads)
    q, k, v = draw(70, 90, groups=1)
    agree(q, k, v, block_sparse.attend_blocks(q, k, v, cover).out, masked(q, k, v, mask))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("block", "heads", "past"), [(5, 1, 0), (33, 4, 7), (100, 4, 0)])
def test_queries_that_choose_alone(block, heads, past, causal, monkeypatch):
    """Each query's own blocks, positions that differ between the sequences, queries that stand before any key."""
    generator = torch.Generator().manual_seed(block)
    q = torch.randn(2, heads, 150, 8, generator=generator, dtype=torch.float64).requires_grad_()
    k, v = (
        torch.randn(2, -(-heads // 2), 150 + past, size, generator=generator, dtype=torch.float64).requires_grad_()
        for size in (8, 5)
    )
    here = torch.stack([torch.arange(150) + past, torch.arange(150) - 9])
    choice = Mean(block, 3, forced=("own",) if block == 33 else ())(q, k, Rows(here, 150 + past, block, causal=causal))
    want = chosen.attend(q, k, v, choice, way="mask")
    monkeypatch.setattr(gpu, "usable", lambda x: True)
    got = chosen.attend(q, k, v, choice, way="queries")
    agree(q, k, v, got.out, want.out)
    seen = want.lse > -torch.inf
    assert torch.equal(got.lse > -torch.inf, seen)
    torch.testing.assert_close(got.lse[seen], want.lse[seen])


@pytest.mark.parametrize("side", [10, 70])
def test_blocks_wider_than_a_tile(side, monkeypatch):
    index = torch.randint(-1, 300 // side, (3, -(-200 // side), 3), generator=torch.Generator().manual_seed(1))
    cover = Cover.from_index(index, 200, 300, side, side)
    q, k, v = draw(200, 300)
    want = block_sparse.attend_blocks(q, k, v, cover, True).out
    monkeypatch.setattr(gpu, "usable", lambda x: True)
    agree(q, k, v, block_sparse.attend_blocks(q, k, v, cover, True).out, want)


@pytest.mark.parametrize("text", TEXTS[:2])
def test_wide_heads_take_smaller_blocks(text, monkeypatch):
    monkeypatch.setattr(lists, "WIDEST", 32)
    pattern = p.parse_pattern(text)
    q, k, v = draw(130)
    n, m, blind = block_sparse.fitting(pattern, q, k)
    assert lists.heavy(q, v)
    got = block_sparse.run_on_gpu(q, k, v, lists.planned(pattern, n, m, q.device, True), blind, None).out
    agree(q, k, v, got, masked(q, k, v, pattern.dense(n, m)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_half_precision_stays_close(dtype):
    pattern = p.parse_pattern("Causal & (Window(40) | Sinks(4))")
    q, k, v = draw(100)
    got = on_gpu(*(x.to(dtype) for x in (q, k, v)), pattern).out
    assert got.dtype == dtype
    tolerance = {torch.float16: 3e-3, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(got.double(), masked(q, k, v, pattern.dense(100)), atol=tolerance, rtol=tolerance)


def test_a_window_keeps_few_different_masks():
    """A window over 16k tokens has two kinds of partial blocks, and lists only what it shows."""
    found = lists.planned(p.parse_pattern("Causal & Window(256)"), 16384, 16384, torch.device("cpu"))
    assert len(found.masks) == 2
    assert len(found.columns) < 256 * 6
    assert found.owners.shape == found.columns.shape
