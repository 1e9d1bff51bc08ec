"""Masks of pairs in the kernels, against PyTorch's attention under the same mask, over drawn shapes."""

from dataclasses import replace

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from regard import Layout, build
from regard import patterns as p
from regard.kernels import dense, tiled
from regard.kernels import masked_rows as whole
from regard.kernels.block_sparse import plan as block_sparse


def pattern(layout):
    """What sees every key, or every earlier one."""
    return p.Causal() if layout.causal else p.Window(10_000)


KERNELS = {
    "dense": dense.attend,
    "tiled": tiled.attend,
    "block_sparse": lambda q, k, v, x: block_sparse.attend(q, k, v, pattern(x), mask=x.mask),
    "unfused": lambda q, k, v, x: block_sparse.attend_unfused(q, k, v, pattern(x), mask=x.mask),
}


def reference(q, k, v, seen):
    """PyTorch's attention where ``seen``, rows that see nothing as zeros."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    blind = ~seen.any(-1, keepdim=True)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen | blind)
    return out.masked_fill(blind, 0)


@st.composite
def calls(draw):
    """Inputs, and a layout with a mask of some shape in which some rows are blind."""
    groups, each, batch = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    n, m = draw(st.sampled_from([(1, 7), (11, 11), (5, 19), (19, 5), (290, 290), (3, 601), (523, 61)]))
    heads = groups * each
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    shapes = ((batch, heads, n, 5), (batch, groups, m, 5), (batch, groups, m, draw(st.sampled_from([3, 5, 7]))))
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    mask = torch.rand(draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, heads])), n, m, generator=generator)
    mask = (mask < draw(st.sampled_from([0.1, 0.6, 1.0]))) & (torch.rand(n, 1, generator=generator) < 0.9)
    return *inputs, Layout(causal=draw(st.booleans()), mask=mask)


@pytest.mark.parametrize("small", [(0, 0), (1 << 16, 0), (1 << 16, 512)], ids=["in blocks", "whole", "in rows"])
@pytest.mark.parametrize("kernel", KERNELS)
@hypothesis.given(calls())
@hypothesis.settings(
    max_examples=8, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_masked_kernels_are_attention_under_the_mask(monkeypatch, kernel, small, call):
    monkeypatch.setattr(block_sparse, "WHOLE", small[0])
    monkeypatch.setattr(whole, "SIDE", small[1])
    q, k, v, layout = call
    got = KERNELS[kernel](q, k, v, layout)
    n, m = q.shape[2], k.shape[2]
    seen = layout.allowed(n, m)
    if kernel in ("block_sparse", "unfused"):  # queries before the first key stand nowhere in a pattern
        seen = seen & (torch.arange(n) >= n - m)[:, None]
    want = reference(q, k, v, seen)
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)
    weight = torch.randn_like(want)
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (got, want)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


def test_a_window_is_the_same_as_its_mask():
    q, k, v = torch.randn(3, 2, 4, 71, 5)
    i, j = torch.arange(71)[:, None], torch.arange(71)
    near = (i - j).abs() < 9
    mask = torch.rand(2, 4, 71, 71) < 0.7
    for causal in (True, False):
        plain = build("window", size=9)(q, k, v, Layout(causal=causal))
        torch.testing.assert_close(build("softmax")(q, k, v, Layout(causal=causal, mask=near[None, None])), plain)
        both = build("softmax")(q, k, v, Layout(causal=causal, mask=near & mask))
        for name, config in (("window", {"size": 9}), ("pattern", {"of": "Window(9)"})):
            torch.testing.assert_close(build(name, **config)(q, k, v, Layout(causal=causal, mask=mask)), both)


def test_a_mask_costs_no_matrix_of_scores(monkeypatch):
    """Rows come in parts: no call of the operator sees more of them than it may."""
    seen = []
    fused = dense.fused
    monkeypatch.setattr(dense, "fused", lambda q, *rest: (seen.append(q.shape[2]), fused(q, *rest))[1])
    q = torch.randn(1, 1, 3 * dense.MASKED_ROWS + 5, 3)
    dense.attend(q, q, q, Layout(mask=torch.rand(1, 1, q.shape[2], q.shape[2]) < 0.5))
    assert max(seen) <= dense.MASKED_ROWS < sum(seen)


@pytest.mark.parametrize("name", ["retnet", "agent", "multi_token", "probabilistic", "delta", "flow"])
def test_what_cannot_hide_pairs_says_so_and_what_to_do(name):
    attention = build(name)
    q = torch.randn(1, 4, 7, 5)
    layout = Layout(causal=attention.traits.causal, mask=torch.ones(1, 1, 7, 7, dtype=torch.bool))
    with pytest.raises(
        ValueError, match=r"layout\.mask: got a mask, want None: \w+ cannot hide single pairs; .*softmax"
    ):
        attention(q, q, q, layout)


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
@pytest.mark.parametrize("learned", [False, True])
@hypothesis.given(calls(), st.booleans())
@hypothesis.settings(max_examples=8, deadline=None)
def test_a_bias_is_added_under_any_mask(kernel, learned, call, packed):
    q, k, v, layout = call
    n, m = q.shape[2], k.shape[2]
    bias = torch.randn(1, q.shape[1], n, m, dtype=torch.float64, requires_grad=learned)
    segments = (torch.arange(m) // 9).expand(len(q), -1) if packed and n <= m else None
    given = replace(layout, bias=bias, segments=segments)
    got, seen = KERNELS[kernel](q, k, v, given), given.allowed(n, m)
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * q.shape[-1] ** -0.5 + bias
    a = torch.softmax(scores.masked_fill(~seen, -1e9), -1).masked_fill(~seen, 0)
    want = a @ v.repeat_interleave(q.shape[1] // k.shape[1], 1)
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)
    leaves, weight = (q, k, v, *([bias] if learned else [])), torch.randn_like(want)
    for x, y in zip(*(torch.autograd.grad((z * weight).sum(), leaves) for z in (got, want)), strict=True):
        torch.testing.assert_close(x, y, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_large_bias_keeps_its_precision_in_half_precision(dtype):
    q, k, v = (torch.randn(1, 2, 7, 5, generator=torch.Generator().manual_seed(1)) for _ in range(3))
    bias = 300 + torch.arange(49.0).view(1, 1, 7, 7) / 49
    want = dense.attend(q, k, v, Layout(bias=bias - 300))
    got = dense.attend(*(x.to(dtype) for x in (q, k, v)), Layout(bias=bias))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), want, atol=2e-2, rtol=2e-2)


def test_a_bias_where_none_is_taken_is_named():
    q = torch.randn(1, 2, 3, 5)
    with pytest.raises(ValueError, match=r"layout\.bias: got a bias, want None: nothing is added to the scores of L"):
        build("lightning")(q, q, q, Layout(causal=True, bias=torch.zeros(1, 1, 3, 3)))
    with pytest.raises(TypeError, match=r"attn_bias: .*want layout=Layout\(bias=…\)"):
        build("softmax")(q, q, q, attn_bias=q)
    with pytest.raises(ValueError, match=r"layout\.bias: .*what is to be hidden is for `mask`"):
        build("softmax")(q, q, q, Layout(bias=torch.full((1, 1, 3, 3), -torch.inf)))
