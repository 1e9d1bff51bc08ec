"""The block-sparse kernel against masked dense attention: forward, gradients, router lists, half precision, memory."""

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from regard import patterns as p
from regard.kernels import masked_rows as whole
from regard.kernels.block_sparse import plan as block_sparse
from regard.kernels.dense import attend_lse as dense_lse
from regard.patterns.cover import Cover
from regard.patterns.parted import parted

TEXTS = [
    *("Causal & Window(37)", "Causal & (Window(9) | Sinks(3) | Power(7))", "Blocks(40, 16)", "Random(0.2, block=8)"),
    *(
        "PerHead(Window(5), Blocks(16, 8), Sinks(0))",
        "Sinks(0)",
        "Causal & Strided(11)",
        "GlobalQueries(3) | Window(2)",
        "Causal & (Window(9) | Strided(11))",
        "Strided(4) | Dilated(3, 5) | Sinks(2)",
        "Causal & Trailing(4, 2, 3)",
        "PerHead(Dilated(2, 6), Strided(4), Causal & Strided(2))",
    ),
]


@pytest.fixture(autouse=True, params=[(0, 0), (1 << 16, 0), (1 << 16, 512)], ids=["in blocks", "whole", "in rows"])
def small(request, monkeypatch):
    """Small inputs run under one mask, or in rows of a kept one; every test looks at all ways."""
    monkeypatch.setattr(block_sparse, "WHOLE", request.param[0])
    monkeypatch.setattr(whole, "SIDE", request.param[1])


def draw(n, m=None, heads=3, groups=3, dtype=torch.float64):
    torch.manual_seed(0)
    m = n if m is None else m
    shapes = ((2, heads, n, 8), (2, groups, m, 8), (2, groups, m, 5))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def masked(q, k, v, mask):
    """Dense attention under a mask; zeros where nothing is seen."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, -1).nan_to_num(0) @ v


def agree(q, k, v, got, want):
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)
    weight = torch.randn_like(want)
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (got, want)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("form", [block_sparse.attend, block_sparse.attend_unfused])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("n", "m", "groups"), [(130, 130, 3), (1, 77, 3), (60, 201, 1), (50, 20, 3), (3, 3, 3)])
def test_equals_masked_dense_attention(form, text, n, m, groups):
    pattern = p.parse_pattern(text)
    q, k, v = draw(n, m, groups=groups)
    agree(q, k, v, form(q, k, v, pattern), masked(q, k, v, pattern.dense(n, m)))


@st.composite
def unions(draw):
    """Unions of what has a period and what has none, cut by something."""
    parts = st.sampled_from(
        ["Window(3)", "Sinks(2)", "Strided(3)", "Strided(4)", "Dilated(3, 4)", "Trailing(3, 1, 2)", "~Window(5)"]
    )
    text = " | ".join(draw(st.lists(parts, min_size=1, max_size=4)))
    return p.parse_pattern(draw(st.sampled_from(["", "Causal & ", "~Sinks(1) & Causal & "])) + f"({text})")


@hypothesis.given(unions(), st.integers(1, 60), st.integers(0, 30))
@hypothesis.settings(max_examples=60, deadline=None)
def test_parts_of_one_period_are_the_whole_and_have_nothing_in_common(pattern, n, more):
    parts = parted(pattern)
    seen = torch.stack([part.dense(n, n + more) for part in parts]).sum(0)
    assert torch.equal(seen, pattern.dense(n, n + more).long())
    assert len({part.period for part in parts}) == len(parts)
    for part in parts:
        i, j = (part.dense(n, n + more)[0]).nonzero().unbind(1)
        assert not ((i + more - j) % part.period).any()


def test_strided_patterns_compute_little_more_than_they_show():
    pattern = p.parse_pattern("Causal & (Window(64) | Strided(64))")
    assert block_sparse.cells(pattern, 8192, 8192) < 0.1 * 8192 * 8192 / 2
    assert block_sparse.share(pattern, 8192) > 0.15


@st.composite
def neighbourhoods(draw):
    axes = draw(st.integers(1, 3))
    grid = [draw(st.integers(1, {1: 300, 2: 18, 3: 7}[axes])) for _ in range(axes)]
    window = [draw(st.integers(1, size + 1)) for size in grid]
    stride = [draw(st.integers(1, w)) for w in window]
    dilation = [draw(st.integers(1, 3)) for _ in grid]
    return p.Neighborhood(grid, window, stride, dilation, [draw(st.booleans()) for _ in grid])


@hypothesis.given(neighbourhoods(), st.sampled_from([block_sparse.attend, block_sparse.attend_unfused]))
@hypothesis.settings(max_examples=30, deadline=None)
def test_neighbourhoods_equal_masked_dense_attention(pattern, form):
    n = math.prod(pattern.grid)
    q, k, v = draw(n)
    agree(q, k, v, form(q, k, v, pattern), masked(q, k, v, pattern.dense(n)))


@hypothesis.settings(max_examples=20)
@hypothesis.given(
    st.lists(st.integers(1, 8), min_size=2, max_size=3),
    st.sampled_from(["TILES", "FRAMES", "RUNS"]),
    st.integers(1, 4),
    st.booleans(),
)
def test_any_boxes_give_the_same(grid, boxes, window, shared):
    """Whichever boxes are taken: on grids with short axes, with windows and with what shares a coordinate."""
    pattern = p.Same(grid, 0) | p.Same(grid, len(grid) - 1) if shared else p.Neighborhood(grid, window)
    q, k, v = draw(math.prod(grid))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_sparse, "boxes_of", lambda *_: getattr(block_sparse, boxes))
        block_sparse.planned.cache_clear()
        got = block_sparse.attend(q, k, v, pattern)
        agree(q, k, v, got, masked(q, k, v, pattern.dense(math.prod(grid))))
    block_sparse.planned.cache_clear()


def test_log_sum_exps_and_their_gradients():
    pattern = p.parse_pattern("Causal & Window(7)")
    q, k, v = draw(40)
    part = block_sparse.attend_lse(q, k, v, pattern)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~pattern.dense(40), -torch.inf)
    torch.testing.assert_close(part.lse, scores.logsumexp(-1), atol=1e-9, rtol=1e-9)
    for a, b in zip(
        *(torch.autograd.grad(x.square().sum(), (q, k)) for x in (part.lse, scores.logsumexp(-1))), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("causal", [False, True])
def test_lists_of_blocks_as_routers_give_them(causal):
    """Lists for each head and block of queries, of different lengths, repeats and blanks among them."""
    n, rows, cols = 70, 16, 8
    index = torch.tensor([[0, 0, -1], [1, 0, -1], [4, 3, 0], [5, 5, 5], [8, 0, 2]])
    lists = torch.stack([index, index.flip(1).roll(0, 0), torch.full_like(index, 0)])
    cover = Cover.from_index(lists, n, n, rows, cols)
    mask = torch.zeros(3, n, n, dtype=torch.bool)
    for head in range(3):
        for block in range(5):
            for key in set(lists[head, block].tolist()) - {-1}:
                mask[head, block * rows : (block + 1) * rows, key * cols : (key + 1) * cols] = True
    mask = mask.tril() if causal else mask
    q, k, v = draw(n)
    agree(q, k, v, block_sparse.attend_blocks(q, k, v, cover, causal).out, masked(q, k, v, mask))
    assert cover.density == pytest.approx(mask.double().mean().item()) or causal


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("groups", [1, 3])
def test_each_sequence_of_a_batch_has_lists_of_its_own(heads, groups):
    cover, mask = batched(heads)
    q, k, v = draw(70, 90, groups=groups)
    assert cover.density == pytest.approx(mask.double().mean().item())
    agree(q, k, v, block_sparse.attend_blocks(q, k, v, cover).out, masked(q, k, v, mask))
    causal = mask & torch.ones(70, 90, dtype=torch.bool).tril(20)
    agree(q, k, v, block_sparse.attend_blocks(q, k, v, cover, True).out, masked(q, k, v, causal))
    assert torch.equal(cover.lists(heads - 1, 3, 1), cover.repeated(3).lists(2, 3, 1))


def batched(heads):
    """A cover of a batch of two, of 70 queries over 90 keys, and its mask."""
    index = torch.randint(-1, 5, (2, heads, 7, 2), generator=torch.Generator().manual_seed(1))
    shown = torch.stack([(index == block).any(-1) for block in range(5)], -1)
    mask = shown.repeat_interleave(10, 2).repeat_interleave(20, 3)[..., :90]
    return Cover.from_index(index, 70, 90, 10, 20), mask


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    pattern = p.parse_pattern("Causal & (Window(30) | Sinks(2))")
    q, k, v = draw(200)
    want = masked(q, k, v, pattern.dense(200))
    got = block_sparse.attend(q.to(dtype), k.to(dtype), v.to(dtype), pattern)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, atol=2e-2, rtol=2e-2)


def test_everything_visible_is_dense_attention():
    pattern = p.parse_pattern("Window(1000)")
    q, k, v = draw(150)
    want = dense_lse(q, k, v)
    torch.testing.assert_close(block_sparse.attend(q, k, v, pattern), want.out, atol=1e-12, rtol=1e-12)
    assert all(piece.mask is None for piece in block_sparse.planned(pattern, 128, 128).pieces)


@pytest.mark.parametrize(
    "text",
    [
        *("Causal & Window(100)", "Causal & (Power(4) | Sinks(9))", "PerHead(Window(9), Blocks(64))"),
        *("Causal & Strided(9)", "Causal & (Window(20) | Strided(20))"),
    ],
)
def test_cells_are_what_the_plan_computes(text):
    pattern = p.parse_pattern(text)
    for n in (5, 128, 307, 700):
        assert block_sparse.cells(pattern, n, n, biased=True) == block_sparse.planned(pattern, n, n).cells
        inputs = [x.detach() for x in draw(n, heads=2, groups=2)]
        with FlopCounterMode(display=False) as counter:
            block_sparse.attend(*inputs, pattern)
        assert counter.get_total_flops() == 2 * 2 * 4 * 8 * block_sparse.cells(pattern, n, n)
        assert block_sparse.share(pattern, n) * block_sparse.cells(pattern, n, n) * pattern.heads == pytest.approx(
            pattern.pairs(n)
        )


def test_bad_input_is_named():
    q, k, v = draw(8)
    with pytest.raises(ValueError, match="pattern"):
        block_sparse.attend(q, k, v, p.parse_pattern("PerHead(Window(2), Window(3))"))
    with pytest.raises(ValueError, match="pattern"):
        block_sparse.attend_unfused(q, k, v, p.parse_pattern("PerHead(Window(2), Window(3))"))
    by_head = p.parse_pattern("PerHead(Window(2), Window(3), Sinks(1))")
    with pytest.raises(ValueError, match="pattern"):
        block_sparse.attend_unfused(q, k, v, by_head, bias=lambda i, j: (i - j)[None].double())
    with pytest.raises(ValueError, match="grid"):
        block_sparse.attend(q, k, v, p.Neighborhood((3, 3), 3))
    with pytest.raises(ValueError, match="cover"):
        block_sparse.attend_blocks(q, k, v, p.Window(3).cover(9, rows=4, cols=4))
    with pytest.raises(ValueError, match=r"cover: got .* batch 2, want .* batch 1 or 1"):
        block_sparse.attend_blocks(*(x[:1] for x in draw(70, 90)), batched(3)[0])
