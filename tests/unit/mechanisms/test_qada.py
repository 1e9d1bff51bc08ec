"""Query-adaptive attention: the moments of far keys by hand and in chunks, and both ends."""

import math

import pytest
import torch

from regard.core.layout import Layout
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.qada import CHUNK, QueryAdaptive, Sums
from regard.mechanisms.sparse.window import SlidingWindow

CAUSAL = Layout(causal=True)


def test_by_hand():
    """Six far keys of ±1 and two near ones of 3, a query of 2: scores of mean 0 and variance 4 are told to sum to
    6 e²; near ones sum to 2 e⁶, a share of 0.9479."""
    k = torch.tensor([1.0, -1, 1, -1, 1, -1, 3, 3]).view(1, 1, 8, 1)
    q = torch.full((1, 1, 1, 1), 2.0)
    mean, spread, count, _ = Sums.none(k, torch.zeros((), dtype=torch.int64)).moments(q, k, 0, 2)
    assert (mean.item(), spread.item(), count.item()) == (0, 4, 6)
    share = 2 * math.exp(6) / (2 * math.exp(6) + 6 * math.exp(2))
    for way in ("plain", "fast"):
        assert getattr(QueryAdaptive(2, 0, share + 1e-6), way)(q, k).item() == 1
        assert getattr(QueryAdaptive(2, 0, share - 1e-6), way)(q, k).item() == 0


@pytest.mark.parametrize("n", [1, 67, 300])
def test_moments_in_chunks_are_those_of_all_pairs(n):
    torch.manual_seed(0)
    m, window, sinks = 2 * CHUNK + 193, 11, 3
    q, k = torch.randn(2, 4, m, 5, dtype=torch.float64)[:, :, m - n :], torch.randn(2, 2, m, 5, dtype=torch.float64)
    some = Sums.none(k, torch.zeros((), dtype=torch.int64)).moments(q[:, :, :0], k[:, :, : m - n], sinks, window)[3]
    whole = Sums.none(k, torch.zeros((), dtype=torch.int64))
    for sums in (whole, some):
        mean, spread, count, _ = sums.moments(q, k, sinks, window)
        scores = q @ k.repeat_interleave(2, 1).mT / 5**0.5
        for place in {0, n // 2, n - 1}:
            far = scores[:, :, place, sinks : max(m - n + place - window + 1, sinks)]
            assert count[place] == far.shape[2]
            if far.shape[2]:
                torch.testing.assert_close(mean[:, :, place], far.mean(2))
                torch.testing.assert_close(spread[:, :, place], far.var(2, correction=0))


def test_both_ends():
    q, k, v = torch.randn(3, 1, 2, 50, 6, dtype=torch.float64)
    far = torch.cat([torch.zeros(1, 2, 40, 6), 9 * torch.ones(1, 2, 10, 6)], 2).double()
    assert torch.allclose(QueryAdaptive(60, 0, 1.0)(q, k, v, CAUSAL), Softmax()(q, k, v, CAUSAL))
    q = q.abs() + 1
    got = QueryAdaptive(10, 0, 0.5)(q, far, v, CAUSAL)
    torch.testing.assert_close(got[:, :, -1], SlidingWindow(10)(q, far, v, CAUSAL)[:, :, -1])


def test_refusals():
    with pytest.raises(ValueError, match="share: got 0"):
        QueryAdaptive(share=0)
