"""Smeared keys are those of the token and of the one before it in its document."""

import torch

import regard
from regard import Layout
from regard.mechanisms.scored.smeared import SmearedKeys, before


def test_keys_are_mixed_with_the_key_before():
    """α = 0: half and half; the first key stays; q · k' by hand."""
    mechanism = SmearedKeys(1)
    k = torch.tensor([[1.0, 0.0], [0.0, 2.0], [4.0, 4.0]])[None, None]
    q = torch.tensor([[1.0, 1.0]]).expand(1, 1, 3, 2)
    scores = torch.tensor([1.0, 1.5, 5.0]) / 2**0.5
    want = torch.stack([scores.softmax(0)] * 3)
    torch.testing.assert_close(mechanism.weights(q, k)[0, 0], want)


def test_the_token_before_is_a_real_one_of_the_same_document():
    k = torch.zeros(2, 1, 5, 1)
    real = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])
    segments = torch.tensor([[0, 0, 0, 1, 1], [3, 3, 3, 3, 3]])
    assert before(k, Layout(key_mask=real)).tolist() == [[0, 0, 0, 2, 3], [0, 1, 1, 2, 2]]
    assert before(k, Layout(key_mask=real, segments=segments)).tolist() == [[0, 0, 0, 3, 3], [0, 1, 1, 2, 2]]
    assert before(k, Layout()).tolist() == [[0, 0, 1, 2, 3]] * 2


def test_a_mix_that_is_all_its_own_is_softmax_attention():
    mechanism = SmearedKeys(4)
    torch.nn.init.constant_(mechanism.mix, 40.0)
    q, k, v = torch.randn(2, 4, 7, 5), torch.randn(2, 2, 7, 5), torch.randn(2, 2, 7, 3)
    layout = Layout(causal=True)
    torch.testing.assert_close(mechanism(q, k, v, layout), regard.build("softmax")(q, k, v, layout))
