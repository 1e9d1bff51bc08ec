"""Comprehensive attention benchmarking: nothing causal leaks; index and efficiency length are what they say."""

from __future__ import annotations

import math

import pytest

import regard
from regard.compare import cab
from regard.core.mechanism import Mechanism


def causal() -> list[str]:
    things = [e for e in regard.entries() if isinstance(e.thing, type) and issubclass(e.thing, Mechanism)]
    return [entry.name for entry in things if entry.thing.examples()[0].mechanism.traits.causal]


@pytest.mark.parametrize("name", causal())
def test_no_gradient_reaches_back_from_the_future(name):
    """The gradient of an output to any later input is exactly zero."""
    from regard.core.build import build_for

    assert cab.leak(build_for({"heads": 2, "head_dim": 6}, name)) == 0


def test_a_leak_is_found():
    """The leak test sees a mechanism that looks one token ahead."""

    class Peek(regard.Mechanism):
        def forward(self, q, k, v, layout=None, **signals):
            return v + v.roll(-1, 2)

    assert cab.leak(Peek()) == 1


def test_the_index_is_the_mean_of_z_scores():
    """Scores of 1, 2 and 3 stand at −1.22, 0 and 1.22; empty places do not count."""
    place, other = ("causal self", "sequential"), ("causal cross", "parallel")
    z = cab.z_scores({"a": {place: 1.0, other: 5.0}, "b": {place: 2.0}, "c": {place: 3.0, other: 5.0}})
    assert [z[name][place] for name in "abc"] == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)])
    assert z["a"][other] == 0
    assert other not in z["b"]


def test_the_efficiency_length_is_where_the_times_cross():
    """Times 4n and n²/256 cross at 1,024 tokens; faster everywhere is 0, nowhere is never."""
    lengths = (256, 512, 2048, 4096)
    assert cab.crossing(lengths, [4 * n / (n * n / 256) for n in lengths]) == pytest.approx(1024)
    assert cab.crossing(lengths, [0.5] * 4) == 0
    assert cab.crossing(lengths, [2.0] * 4) is None


def test_correlation_of_patterns():
    """Equal orders correlate at 1, opposite ones at −1, two mechanisms not at all."""
    assert cab.correlation([(1, 2), (2, 4), (3, 6)]) == pytest.approx(1)
    assert cab.correlation([(1, 6), (2, 4), (3, 2)]) == pytest.approx(-1)
    assert cab.correlation([(1, 2), (2, 4)]) is None
