"""Attention Is All You Need, its grouped heads and learned sinks."""

import pytest
import torch
from torch import nn

from regard.core.layout import Layout
from regard.mechanisms.scored.softmax import Softmax


def test_equals_the_papers_formula_on_numbers_done_by_hand():
    """Scores log 2 and log 3 over sqrt(d) = 2 cancel: weights 2/5 and 3/5."""
    q = torch.tensor([[[[2.0, 0, 0, 0]]]])
    k = torch.tensor([[[[2.0, 0, 0, 0], [3.0, 0, 0, 0]]]]).log().nan_to_num(neginf=0)
    v = torch.tensor([[[[10.0, 0.0], [0.0, 20.0]]]])
    torch.testing.assert_close(Softmax()(q, k, v), torch.tensor([[[[4.0, 12.0]]]]))


def test_one_kv_head_equals_that_head_repeated():
    torch.manual_seed(2)
    q, k, v = torch.randn(2, 5, 13, 7), torch.randn(2, 1, 17, 7), torch.randn(2, 1, 17, 11)
    for layout in (Layout(), Layout(causal=True)):
        repeated = Softmax()(q, k.expand(-1, 5, -1, -1), v.expand(-1, 5, -1, -1), layout)
        torch.testing.assert_close(Softmax()(q, k, v, layout), repeated)


def test_a_learned_sink_takes_its_share_and_its_gradient_is_right():
    torch.manual_seed(2)
    q, k, v = (torch.randn(2, 3, 13, 7, dtype=torch.float64) for _ in range(3))
    mechanism = Softmax(sink_heads=3).double()
    nn.init.constant_(mechanism.sink, 1.0)
    missing = 1 - mechanism.weights(q, k, Layout(causal=True)).sum(-1)
    lse = (q @ k.mT / 7**0.5).masked_fill(~torch.ones(13, 13, dtype=torch.bool).tril(), -torch.inf).logsumexp(-1)
    torch.testing.assert_close(missing, torch.sigmoid(1 - lse))
    assert missing.min() > 0.01
    fast = torch.autograd.grad(mechanism(q, k, v, Layout(causal=True)).square().sum(), mechanism.sink)[0]
    slow = torch.autograd.grad((mechanism.weights(q, k, Layout(causal=True)) @ v).square().sum(), mechanism.sink)[0]
    torch.testing.assert_close(fast, slow)


def test_capped_scores_stay_below_the_cap():
    """However large the products, no weight exceeds another of its row by more than exp(2c)."""
    q, k = 100 * torch.randn(2, 3, 13, 7), torch.randn(2, 3, 17, 7)
    weights = Softmax(softcap=1.5).weights(q, k)
    assert (weights.amax(-1) / weights.amin(-1)).max() <= torch.e**3 * 1.001
    assert Softmax().weights(q, k).min() < 1e-12


@pytest.mark.parametrize(("bad", "name"), [({"softcap": 0.0}, "softcap"), ({"softcap": -1.0}, "softcap")])
def test_bad_arguments_are_named(bad, name):
    with pytest.raises(ValueError, match=f"{name}: got .* want a positive number"):
        Softmax(**bad)


def test_sinks_of_other_heads_are_refused():
    with pytest.raises(ValueError, match="q: got 2 heads, want 3, the number of sinks"):
        Softmax(sink_heads=3)(*(torch.randn(1, 2, 5, 7) for _ in range(3)))
