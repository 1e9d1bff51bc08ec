"""LIME's limit where words become an unknown one, and its closed approximation."""

from __future__ import annotations

import math

import pytest
import torch

from regard.analysis.post_hoc import OneQuery, approximation, lime


def model() -> OneQuery:
    """Scores are the first coordinate, what a word says is the second: both of one head."""
    q, w = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    return OneQuery(q, torch.tensor([[[1.0, 0.0]]]).double(), torch.tensor([[[0.0, 1.0]]]).double(), w)


def test_a_word_that_goes_is_left_out_or_becomes_another():
    """Scores log 3 and 0: weights 3/4 and 1/4; the second alone, or beside an unknown word of score 0 that says 10."""
    x = torch.tensor([[math.log(3.0), 4.0], [0.0, -8.0]], dtype=torch.float64)
    second, unknown = torch.tensor([False, True]), torch.tensor([0.0, 10.0], dtype=torch.float64)
    assert model()(x).item() == pytest.approx(0.75 * 4 - 0.25 * 8)
    assert model()(x, second).item() == pytest.approx(-8)
    assert model()(x, second, unknown).item() == pytest.approx(0.5 * 10 - 0.5 * 8)
    assert approximation(model(), x, unknown).tolist() == pytest.approx([1.5 * (3 - 5), 1.5 * (-2 - 5)])


def test_the_limit_of_words_that_are_all_alike_in_weight_is_what_each_says():
    """Then the output is linear in which words there are, and so are coefficients: (e_j − e_u) / n."""
    said = torch.tensor([1.0, -2.0, 0.5, 3.0, -0.25], dtype=torch.float64)
    x = torch.stack([torch.zeros_like(said), said], 1)
    unknown = torch.tensor([0.0, 0.5], dtype=torch.float64)
    assert lime(model(), x, unknown=unknown).tolist() == pytest.approx(((said - 0.5) / 5).tolist())
    assert lime(model(), x, 400, 0, unknown).tolist() == pytest.approx(((said - 0.5) / 5).tolist())
