"""The learned key against PyTorch's attention with one more key and a value of zeros, and by hand."""

import math

import pytest
import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from regard.core.layout import Layout
from regard.mechanisms.scored.key_bias import KeyBias


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_attention_to_one_more_key_of_no_value(causal):
    draw = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 3, n, d, generator=draw).double() for n, d in ((7, 5), (7, 5), (7, 11)))
    mechanism = KeyBias(3, 5).double()
    with torch.no_grad():
        mechanism.key.copy_(torch.randn(3, 5, generator=draw))
    keys = torch.cat([mechanism.key[None, :, None].expand(2, -1, -1, -1), k], 2)
    seen = pad(
        torch.ones(7, 7, dtype=torch.bool).tril() if causal else torch.ones(7, 7, dtype=torch.bool), (1, 0), value=True
    )
    want = scaled_dot_product_attention(q, keys, pad(v, (0, 0, 1, 0)), seen)
    torch.testing.assert_close(mechanism(q, k, v, Layout(causal=causal)), want)
    mechanism(q, k, v).sum().backward()
    assert float(mechanism.key.grad.abs().min()) > 0


def test_one_query_by_hand():
    mechanism = KeyBias(1, 1)
    with torch.no_grad():
        mechanism.key.fill_(math.log(3))
    one = torch.ones(1, 1, 1, 1)
    k = torch.tensor([math.log(2), math.log(5)]).view(1, 1, 2, 1)
    torch.testing.assert_close(mechanism.weights(one, k).flatten(), torch.tensor([0.2, 0.5]))
    with pytest.raises(ValueError, match="1 heads of 1"):
        mechanism(one.expand(1, 2, 1, 1), k.expand(1, 2, 2, 1), k.expand(1, 2, 2, 1))
