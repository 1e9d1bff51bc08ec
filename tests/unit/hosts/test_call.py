"""One call of a host's attention: whatever the strides of what the model hands over, and what it says of itself."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from regard.hosts.attention_arguments import Asked
from regard.hosts.softmax_call import AttentionMap, SoftmaxCall, attend


def test_keys_and_values_stored_channel_by_channel():
    """As 1 × 1 convolutions give them."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, tokens, 8, generator=generator) for tokens in (5, 7, 7))
    loose = [x.mT.contiguous().mT for x in (q, k, v)]
    want, got = (attend(SoftmaxCall(a, b, 8**-0.5), c) for a, b, c in ((q, k, v), loose))
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("before", [0, 1, 4])
@pytest.mark.parametrize("window", [1, 3, 99])
def test_a_mask_is_causal_where_no_query_sees_a_later_key(before, window):
    n, m = 5, 5 + before
    i, j = torch.arange(before, m)[:, None], torch.arange(m)
    mask = ((j <= i) & (j > i - window))[None, None]

    def call(**given: Any) -> Asked:
        about: Any = SimpleNamespace(**{"causal": False, "n": n, "mask": mask} | given)
        return Asked(torch.nn.Identity(), torch.empty(0), about, declared=True, dropout=0.0, window=None, biased=None)

    assert call().causal(before)
    later = mask.clone()
    later[..., 1, before + 2] = True
    assert not call(mask=later).causal(before)
    assert not call(mask=None).causal(before)
    assert call(causal=True, mask=None).causal(before)
    assert call(n=1, mask=None).causal(before)  # as the module says of itself


@pytest.mark.parametrize("d", [16, 32, 64])
def test_no_rounding_makes_a_weight_exceed_one(d):
    """Rows of nearly one key: scores less a log-sum-exp a few units off, whose entropies fell below zero."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 64, d, generator=generator) for _ in range(3))
    call = SoftmaxCall(12 * q, k, d**-0.5, causal=True)
    lse = attend(call, v)[1] - 2e-5
    rows = AttentionMap(call, lse).strip(torch.arange(64))
    assert (rows.log_weights <= 0).all()
    assert (rows.weights <= 1).all()
    torch.testing.assert_close(rows.weights.sum(3), torch.ones(2, 3, 64), rtol=0, atol=1e-4)
