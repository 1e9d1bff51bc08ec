"""Partials form a commutative monoid, and merging is attention over the union."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import Partial


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


def test_nothing_and_nothing_is_nothing():
    nothing = Partial.empty(torch.randn(1, 2, 3, 5))
    merged = nothing + nothing
    assert torch.equal(merged.out, torch.zeros(1, 2, 3, 5))
    assert (merged.lse == -torch.inf).all()
