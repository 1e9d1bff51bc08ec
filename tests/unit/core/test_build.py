"""From names to mechanisms, and what is said of wrong ones."""

import pytest
import torch

import regard


def test_build_makes_the_mechanism_of_that_name():
    mechanism = regard.build("window", size=3)
    q = torch.randn(1, 2, 7, 5)
    a = mechanism.weights(q, q, regard.Layout(causal=True))
    assert [(row > 0).sum().item() for row in a[0, 0]] == [1, 2, 3, 3, 3, 3, 3]


def test_an_unknown_argument_is_answered_with_the_known_ones():
    with pytest.raises(TypeError, match=r"breadth: got an unknown argument, want one of window's: size"):
        regard.build("window", breadth=3)


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(LookupError, match="want one of the atlas, such as sigmoid"):
        regard.build("sigmoidal")
