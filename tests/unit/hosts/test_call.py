"""One call of a host's attention: whatever the strides of what the model hands over, and what it says of itself."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from regard.hosts import softmax_call
from regard.hosts.attention_arguments import Asked
from regard.hosts.softmax_call import AttentionMap, SoftmaxCall, attend, attend_tiled, log_sum_exp


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


def textbook(call, v):
    """Output and log-sum-exp with sinks, whole."""
    i, j = torch.arange(call.n)[:, None], torch.arange(call.m)
    seen = torch.ones(call.n, call.m, dtype=torch.bool)
    if call.causal:
        seen = (j <= i) & (j > i - (call.window or call.m + call.n))
    seen = seen if call.mask is None else seen & call.mask
    k, v = (x.repeat_interleave(call.q.shape[1] // x.shape[1], 1) for x in (call.k, v))
    scores = call.scaling * call.q @ k.mT
    scores = scores if call.softcap is None else call.softcap * (scores / call.softcap).tanh()
    scores = (scores if call.bias is None else scores + call.bias).masked_fill(~seen, -torch.inf)
    sinks = call.q.new_full((call.q.shape[1],), -torch.inf) if call.sinks is None else call.sinks
    joined = torch.cat([scores, sinks[None, :, None, None].expand(*scores.shape[:3], 1)], 3)
    lse = joined.logsumexp(3)
    return joined.sub(lse.nan_to_num(neginf=0)[..., None]).exp()[..., :-1] @ v, lse


@settings(max_examples=60)
@given(data=st.data())
def test_blocks_of_rows_read_what_they_may_see_alone(data):
    """Capped scores, sinks, windows, masks in which rows see nothing, more and fewer keys than queries."""
    n, m = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    noise = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    causal = data.draw(st.booleans())
    drawn = {
        "window": data.draw(st.none() | st.integers(1, 45)) if causal else None,
        "mask": data.draw(st.sampled_from([None, 0.0, 0.1, 0.8])),
        "bias": torch.randn(1, 4, n, m, generator=noise, dtype=torch.float64) if data.draw(st.booleans()) else None,
        "softcap": data.draw(st.sampled_from([None, 2.0])),
        "sinks": torch.randn(4, generator=noise, dtype=torch.float64) if data.draw(st.booleans()) else None,
    }
    if drawn["mask"] is not None:
        drawn["mask"] = torch.rand(2, 1, n, m, generator=noise) < drawn["mask"]
    q, k, v = (
        torch.randn(2, heads, tokens, 8, generator=noise, dtype=torch.float64)
        for heads, tokens in ((4, n), (2, m), (2, m))
    )
    call = SoftmaxCall(q, k, 0.3, causal, **drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(softmax_call, "MOST_ROWS", 7)
        patch.setattr(softmax_call, "LEAST_ROWS", 3)
        out, lse = attend_tiled(call, v, 0.0)
        want, sums = textbook(call, v)
        torch.testing.assert_close(out, want)
        torch.testing.assert_close(lse, sums)
        bare = lse if call.sinks is None else log_sum_exp(call)
        torch.testing.assert_close(bare, textbook(replace(call, sinks=None), v)[1])
        for rows in call.blocks():
            strip = AttentionMap(call, lse).strip(rows)
            got = strip.weights @ v[:, :, strip.start : strip.start + strip.weights.shape[3]].repeat_interleave(2, 1)
            torch.testing.assert_close(got, want[:, :, rows], rtol=1e-6, atol=1e-6)
