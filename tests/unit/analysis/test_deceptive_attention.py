"""The penalty by hand, over heads and layers, and a network that learns to hide a word and goes on using it."""

import math

import pytest
import torch
from torch import tensor

from regard.analysis.deceptive_attention import mass_by_layer, on, penalty
from regard.claims.deceit import sentences
from regard.laws import examine, examples_of

A = tensor([[[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]])
LAST = tensor([[False, False, True]])


def test_the_known_values():
    (sample,) = examples_of(penalty)
    assert examine(sample, "known", kind="analysis").verdict == "holds"


def test_the_layer_that_is_named_is_penalised():
    layers = [A, A.flip(2)[..., [2, 1, 0]]]
    torch.testing.assert_close(on(A, LAST)[0], tensor([[0.2, 0.8], [0.0, 1.0]]))
    want = -(math.log(0.8) + math.log(0.2) + math.log(1e-6)) / 4
    assert float(penalty(layers, LAST, penalised=0)) == pytest.approx(want, rel=1e-4)
    assert float(penalty(layers, LAST)) != pytest.approx(want, rel=1e-2)
    worst = (-math.log(0.8) - math.log(1e-6)) / 2
    assert float(penalty([A], LAST, over="worst")) == pytest.approx(worst, rel=1e-4)


def test_mass_is_told_of_all_layers():
    (low, high), second = mass_by_layer([A, A.flip(1)], LAST)
    assert (low, high) == pytest.approx((0.5, 0.5))
    assert second == pytest.approx((0.5, 0.5))
    assert mass_by_layer([A[:, :1]], tensor([[True, False, False]])) == [pytest.approx((0.3, 0.3))]


def test_its_gradient_takes_mass_away():
    scores = torch.zeros(1, 1, 1, 3, requires_grad=True)
    penalty([scores.softmax(3)], LAST).backward()
    assert scores.grad is not None
    slope = scores.grad.flatten()
    assert float(slope[2]) > 0 > float(slope[0])


def test_one_word_decides():
    words, decides, labels = sentences(40, torch.Generator().manual_seed(0))
    assert decides.sum(1).tolist() == [1] * 40
    assert torch.equal(words[decides] // 3, labels)
    assert int(words[~decides].min()) >= 6


@pytest.mark.parametrize(
    ("given", "said"),
    [(([A], LAST, -1.0), "strength"), (([], LAST), "weights"), (([A], LAST, 1.0, "max"), "over")],
)
def test_what_is_no_penalty_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        penalty(*given)
