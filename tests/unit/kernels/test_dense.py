"""Fused attention in pieces: merging, log-sum-exp and its gradient, the products that stand in for the operator."""

from dataclasses import replace

import pytest
import torch

from regard.core.layout import Layout
from regard.core.reduction import Partial
from regard.kernels import band, dense, flash, tiled

LAYOUTS = {
    "bidirectional": Layout(),
    "causal": Layout(causal=True),
    "padded": Layout(causal=True, key_mask=torch.arange(19)[None] >= torch.tensor([[0], [7]])),
    "packed": Layout(causal=True, segments=(torch.arange(19) > 8).long().expand(2, -1)),
}


def draw(n=13, m=19, heads=6, groups=3, d=5, e=7):
    torch.manual_seed(4)
    shapes = ((2, heads, n, d), (2, groups, m, d), (2, groups, m, e))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def textbook(q, k, v, layout):
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    allowed = layout.allowed(q.shape[2], k.shape[2])
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~allowed, -1e300)
    lse = scores.logsumexp(-1).masked_fill(~allowed.any(-1), -torch.inf)
    return scores.softmax(-1).masked_fill(~allowed, 0) @ v, lse


@pytest.mark.parametrize(("n", "m"), [(13, 19), (19, 19), (1, 19), (23, 19), (1, 1), (0, 19)])
@pytest.mark.parametrize("name", [*LAYOUTS, "masked"])  # packed queries are among the keys
def test_the_operator_of_gpus_with_all_gradients(name, n, m, monkeypatch):
    """Groups of heads, fewer and more queries than keys, rows in parts, rows that see nothing."""
    if name == "packed" and n > m:
        n = m
    monkeypatch.setattr(dense, "MASKED_ROWS", 5)
    layout = LAYOUTS.get(name) or Layout(mask=torch.rand(2, 6, n, m, generator=torch.Generator().manual_seed(1)) < 0.2)
    fields = {"key_mask": layout.key_mask, "segments": layout.segments}
    layout = replace(layout, **{key: None if x is None else x[:, -m:] for key, x in fields.items()})
    tensors = draw(n, m)
    got, want = dense.by_operator(*tensors, layout, None), textbook(*tensors, layout)[0]
    torch.testing.assert_close(got, want)
    weights = torch.sin(torch.arange(got.numel(), dtype=got.dtype)).view(got.shape)
    found, wanted = (torch.autograd.grad((x * weights).sum(), tensors) for x in (got, want))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("attend", [dense.attend_lse, tiled.attend_lse])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_log_sum_exp_and_the_gradients_through_it(attend, layout):
    tensors = draw()
    part, (out, lse) = attend(*tensors, layout), textbook(*tensors, layout)
    torch.testing.assert_close(part.out, out)
    torch.testing.assert_close(part.lse, lse)
    rows = torch.isfinite(lse)
    found, wanted = (
        torch.autograd.grad(o.square().sum() + s[rows].sin().sum(), tensors)
        for o, s in ((part.out, part.lse), (out, lse))
    )
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_partials_over_halves_of_the_keys_merge_to_the_whole_with_gradients():
    q, k, v = draw()
    halves = [dense.attend_lse(q, k[:, :, span], v[:, :, span]) for span in (slice(0, 8), slice(8, 19))]
    merged, whole = halves[0] + halves[1] + Partial.empty(halves[0].out), dense.attend_lse(q, k, v)
    torch.testing.assert_close(merged.out, whole.out)
    torch.testing.assert_close(merged.lse, whole.lse)
    pairs = zip(*(torch.autograd.grad(part.out.square().sum(), (q, k, v)) for part in (merged, whole)), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_plain_products_stand_in_for_the_operator(causal, masked):
    q, k, v = (x.detach() for x in draw(groups=6, e=5))
    bias = torch.zeros(2, 1, 1, 19, dtype=q.dtype)
    bias[:, ..., 5:9] = -torch.inf
    options = causal, bias if masked else None, 0.3
    mine = dense.by_products(q, k, v, *options)
    theirs = flash.attend(q, k, v, *options)
    torch.testing.assert_close(mine, tuple(theirs))
    mine = dense.by_products_backward(q, q, k, v, *theirs, *options)
    torch.testing.assert_close(mine, tuple(flash.gradients(q, q, k, v, *theirs, *options)))


def test_padding_alone_forms_no_square_mask():
    keys = torch.rand(2, 4096) > 0.2
    (square,) = dense.pieces(4096, 4096, Layout(causal=True, key_mask=keys))
    assert square.mask.shape == (2, 1, 1, 4096)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("n", "m", "size", "sinks"), [(521, 521, 37, 0), (521, 521, 131, 5), (131, 521, 37, 3), (7, 3, 5, 2)]
)
def test_band_covers_each_visible_pair_once(n, m, size, causal, sinks):
    q, k, v = draw(n, m, heads=2, groups=1)
    distance = torch.arange(n)[:, None] + m - n - torch.arange(m)
    seen = (distance.abs() < size) | (torch.arange(m) < sinks)
    seen &= distance >= 0 if causal else True
    scores = (q @ k.mT / 5**0.5).masked_fill(~seen, -1e300)
    want = scores.softmax(-1).masked_fill(~seen, 0) @ v
    got = band.attend(q, k, v, size, causal, sinks)
    torch.testing.assert_close(got, want)
    for mine, theirs in zip(*(torch.autograd.grad(o.square().sum(), (q, k, v)) for o in (got, want)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_band_work_is_linear():
    assert band.cells(2**20, 2**20, 256, True, 4) < 2**20 * (256 + 128 + 4 + 1)
