"""Bounds on attention to rules, by hand."""

import math

import pytest
import torch

from regard.studies.rule_anchors import entropy_bound, fidelity_bound


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_entropy_of_masses_that_are_alike_inside():
    """All on one anchor, none; all on four, log 4; half on one of two tokens, log 2; all on five others, log 5."""
    found = entropy_bound(numbers(1, 1, 0.5, 0), numbers(1, 4, 1, 0), numbers(3, 3, 1, 5))
    assert found.tolist() == pytest.approx([0, math.log(4), math.log(2), math.log(5)])


def test_a_margin_of_none_shares_by_number():
    assert fidelity_bound(numbers(2), numbers(6), 0.0).item() == pytest.approx(0.25)
    assert fidelity_bound(numbers(2), numbers(6), math.log(3)).item() == pytest.approx(0.5)
