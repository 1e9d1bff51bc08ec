"""Accuracy, on models whose answers are known."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from regard.tasks import Copy, accuracy, correct


class SameAsBefore(nn.Module):
    """Says the token that stood `period` places before the next one; 0 where there is none."""

    def __init__(self, period: int, vocabulary: int = 31):
        super().__init__()
        self.period, self.vocabulary = period, vocabulary
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, use_cache):
        guess = input_ids.roll(self.period - 1, dims=1)
        return SimpleNamespace(logits=nn.functional.one_hot(guess, self.vocabulary).float())


def test_a_perfect_copier_is_always_right_and_a_wrong_one_by_chance():
    task = Copy(range(31), block=(7, 7))
    assert accuracy(SameAsBefore(7), task, (29, 53), samples=5, batch_size=3) == {29: 1.0, 53: 1.0}
    assert accuracy(SameAsBefore(5), task, (29,), samples=5)[29] < 0.3


def test_only_answers_count():
    ids = torch.tensor([[3, 5, 3, 7]])
    answers = torch.tensor([[False, True, True, True]])
    assert correct(SameAsBefore(2), ids, answers).tolist() == [False, True, False]


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="samples, batch_size: got 0, 8, want at least 1 of each"):
        accuracy(SameAsBefore(2), Copy(range(31)), (8,), samples=0)
