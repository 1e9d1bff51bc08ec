"""One call of a host's attention: whatever the strides of what the model hands over."""

import torch

from regard.hosts.softmax_call import SoftmaxCall, attend


def test_keys_and_values_stored_channel_by_channel():
    """As 1 × 1 convolutions give them."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, tokens, 8, generator=generator) for tokens in (5, 7, 7))
    loose = [x.mT.contiguous().mT for x in (q, k, v)]
    want, got = (attend(SoftmaxCall(a, b, 8**-0.5), c) for a, b, c in ((q, k, v), loose))
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs)
