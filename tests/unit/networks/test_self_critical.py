"""Training by the score of whole captions: the score by hand, and the gradient that draws give."""

from __future__ import annotations

import math

import pytest
import torch

from regard.networks.captioning.bottom_up import BottomUpTopDown
from regard.networks.captioning.self_critical import drawn, self_critical, through
from regard.tasks.cider import Cider


def test_cider_by_hand():
    """Of three references "1 2" in one: weights of 1, 2 and (1, 2) are log 3, of 3, in two, log 3/2."""
    score = Cider([[1, 2], [3, 3], [3, 4]])
    assert score.score([1, 2], [1, 2]) == pytest.approx(10 * 2 / 4)  # two of four lengths of n-grams are there
    one, half = math.log(3), math.log(1.5)
    cosine = one**2 / (math.hypot(one, half) * math.hypot(one, one))
    assert score.score([1, 3], [1, 2]) == pytest.approx(10 * cosine / 4)
    assert score.score([1, 2, 5], [1, 2]) < 5 * math.exp(-1 / 72)
    repeated = one**2 / (2 * one * math.hypot(one, one))  # twice said counts once
    assert score.score([1, 1], [1, 2]) == pytest.approx(10 * repeated / 4)
    with pytest.raises(ValueError, match="known: got no references"):
        Cider([])


def test_what_counts_ends_with_the_first_stop():
    assert through(torch.tensor([[1, 9, 3, 9], [1, 2, 3, 4]]), 9).tolist() == [
        [True, True, False, False],
        [True, True, True, True],
    ]


def test_draws_follow_the_chances_and_rewarded_ones_become_likelier():
    """Where words do not depend on each other: the estimate's mean is the gradient of the mean reward."""
    model, source = BottomUpTopDown(5, 7, 8, seed=0), torch.randn(1, 3, 7).expand(512, -1, -1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.out.weight.zero_()
        model.out.bias.copy_(torch.tensor([1.0, 0.5, 0.0, -0.5, -1.0]))
    chances = model.out.bias.detach().softmax(0)
    tokens = drawn(model, source, 4, generator)
    counted = torch.bincount(tokens.flatten(), minlength=5) / tokens.numel()
    torch.testing.assert_close(counted, chances, atol=0.05, rtol=0)
    loss = self_critical(model, source, lambda tokens: (tokens == 2).float().sum(1), 4, 99, generator)
    (slope,) = torch.autograd.grad(loss, model.out.bias)
    want = -4 * chances[2] * (torch.eye(5)[2] - chances)
    torch.testing.assert_close(slope, want, atol=0.15, rtol=0)
    assert slope[2] < 0


def test_a_writer_that_is_right_already_is_left_alone():
    model, source = BottomUpTopDown(5, 7, 8, seed=0), torch.randn(2, 3, 7)
    loss = self_critical(model, source, lambda tokens: torch.ones(2), 3, 4, torch.Generator().manual_seed(0))
    assert loss.item() == 0


def test_what_comes_after_the_stop_has_no_part():
    """The same draws, and the sum written out word by word up to the first word 0."""
    model, source = BottomUpTopDown(3, 7, 8, seed=0), torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(3))

    def reward(tokens):
        return (tokens == 1).float().sum(1)

    loss = self_critical(model, source, reward, 6, 0, torch.Generator().manual_seed(4))
    tokens = drawn(model, source, 6, torch.Generator().manual_seed(4))
    better = reward(tokens) - reward(model.generate(source, 6))
    logs, total = model(source, tokens).log_softmax(-1), 0.0
    for row, words in enumerate(tokens.tolist()):
        until = words.index(0) + 1 if 0 in words else len(words)
        total += better[row].item() * sum(logs[row, place, words[place]].item() for place in range(until))
    assert 0 in tokens[:, :-1]
    assert loss.item() == pytest.approx(-total / 5, rel=1e-5)
