"""When a scaled channel is said to even out what is recalled, on figures made up."""

import pytest

from regard.claims.figures import Figures, half_width, interval
from regard.claims.positional_channel import DRAWS, evens_out

GAINS = {"worst gain": 0.08, "worst low": 0.01, "worst high": 0.15, "all gain": 0.05, "all low": 0.02, "all high": 0.1}
RANDOM = (0.03, 0.01, -0.01, -0.01, -0.01)


def found(random=RANDOM, **changed):
    row = GAINS | {"candidates": 10, "channel": 8, "factor": 0.0} | changed
    return evens_out(Figures([row | {f"random {draw}": gain for draw, gain in enumerate(random)}]))


def test_it_evens_out_where_random_channels_do_not():
    assert len(RANDOM) == DRAWS
    assert found().held


@pytest.mark.parametrize(
    "changed",
    [
        {"worst low": -0.01},
        {"all gain": -0.01},
        {"random": (0.09, -0.03, -0.02, 0.0, 0.0)},
        {"random": (0.031, 0.03, 0.029, 0.03, 0.03)},
        {"candidates": 0},
    ],
    ids=["perhaps nothing", "the mean loses", "one random channel does better", "all random ones gain", "none found"],
)
def test_it_does_not_where_one_of_its_conditions_fails(changed):
    assert not found(**changed).held


def test_half_of_an_interval_is_students():
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 * 1 / 3**0.5)
    assert interval([1.0, 2.0, 3.0], ".2f") == "2.00 ± 2.48"
