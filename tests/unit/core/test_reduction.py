"""Partials form a commutative monoid, and merging is attention over the union."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import Layout, Partial
from regard.kernels import dense, tiled


def partial(scores: torch.Tensor, v: torch.Tensor) -> Partial:
    """Attention over some keys, by the book."""
    if scores.shape[-1] == 0:
        return Partial.empty(scores.new_zeros(*scores.shape[:-1], v.shape[-1]))
    return Partial(torch.softmax(scores, -1) @ v, torch.logsumexp(scores, -1))


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 17), min_size=2, max_size=2), scale=st.sampled_from([0.1, 3.0, 300.0]))
def test_any_split_of_the_keys_merges_to_the_whole(cuts, scale):
    generator = torch.Generator().manual_seed(3)
    scores = scale * torch.randn(2, 3, 5, 17, generator=generator, dtype=torch.float64)
    v = torch.randn(2, 3, 17, 7, generator=generator, dtype=torch.float64)
    first, second = sorted(cuts)
    parts = [partial(scores[..., a:b], v[:, :, a:b]) for a, b in ((0, first), (first, second), (second, 17))]
    whole = partial(scores, v)
    for merged in (parts[0] + parts[1] + parts[2], parts[2] + (parts[0] + parts[1])):
        torch.testing.assert_close(merged.out, whole.out, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(merged.lse, whole.lse, rtol=1e-12, atol=1e-12)


def test_rows_that_no_part_sees_have_gradients_of_zero():
    """Through the outputs and the sums; one part sees the second row, none the first."""
    lse = torch.tensor([[-torch.inf, 0.3], [-torch.inf, -torch.inf]], dtype=torch.float64, requires_grad=True)
    out = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    merged = Partial(out[0], lse[0]) + Partial(out[1], lse[1])
    upstream = torch.ones_like(merged.out), torch.ones_like(merged.lse)
    by_lse, by_out = torch.autograd.grad((merged.out, merged.lse), (lse, out), upstream)
    torch.testing.assert_close(by_lse, torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(by_out, by_lse[..., None].expand(2, 2, 3))


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(0, 11), real=st.lists(st.booleans(), min_size=11, max_size=11), tiles=st.booleans())
def test_merged_parts_have_the_gradients_of_the_whole_whatever_is_hidden(cut, real, tiles):
    attend = tiled.attend_lse if tiles else dense.attend_lse
    generator = torch.Generator().manual_seed(5)
    q, k, v = (
        torch.randn(2, 3, tokens, 5, generator=generator, dtype=torch.float64, requires_grad=True)
        for tokens in (7, 11, 11)
    )
    keys = torch.tensor([real, [False] * 11])
    spans = slice(0, cut), slice(cut, 11)
    first, second = (attend(q, k[:, :, part], v[:, :, part], Layout(key_mask=keys[:, part])) for part in spans)
    found = []
    for part in (first + second, attend(q, k, v, Layout(key_mask=keys))):
        seen = part.lse.isfinite()
        loss = part.out.square().sum() + part.lse.masked_fill(~seen, 0).sin().sum()
        found.append(torch.autograd.grad(loss, (q, k, v)))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
        assert not got[1].any()


def test_nothing_and_nothing_is_nothing():
    nothing = Partial.empty(torch.randn(1, 2, 3, 5))
    merged = nothing + nothing
    assert torch.equal(merged.out, torch.zeros(1, 2, 3, 5))
    assert (merged.lse == -torch.inf).all()
