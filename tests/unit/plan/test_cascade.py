"""The model of an array, by hand."""

from __future__ import annotations

import pytest

from regard.studies.fusemax import DEFERRED, NAIVE, RUNNING, Array

SMALL = Array(rows=5, columns=7, vectors=3, exp_macs=2, mac_pj=1.5, chip_pj=2.0, memory_pj=100.0)


def test_an_array_by_hand():
    """11 queries are 2 sweeps of 7, 13 keys 3 blocks of 5; e = 2, f = 3; 1,001 multiply-adds, 185 numbers moved."""
    one, three = (SMALL.model(cascade, 11, 13, 2, 3) for cascade in (RUNNING, NAIVE))
    assert one.cycles == pytest.approx(2 * (3 * (3 + 3 + 2) * 7 / 3 + 12))
    assert one.utilisation == pytest.approx(2 * 3 * 9 / one.cycles)
    assert one.buffer == 7 * (2 + 6 + 4) + 2 * 5 * 5 + 35
    assert three.cycles == pytest.approx(2 * (3 * 5 * (2 + 3) * 7 / 3 + 12))
    assert three.utilisation == pytest.approx(2 * 3 * 5 / three.cycles)
    assert three.buffer == 7 * (2 + 3 + 2 + 13) + 2 * 5 * 5
    assert SMALL.model(DEFERRED, 11, 13, 2, 3).cycles == pytest.approx(2 * (3 * 5 * (2 + 2) * 7 / 3 + 12))
    for found in (one, three):
        assert found.traffic == 2 * 13 * 5 + 11 * 5
        assert found.energy == pytest.approx(1e-12 * (1001 * 1.5 + 2 * 1001 / 5 * 2.0 + 185 * 100.0))


def test_the_default_is_the_published_array():
    """FuseMax: 256 × 256 elements beside 256; Horowitz's energies of 16 bits at 45 nm."""
    assert Array() == Array(256, 256, 256, 6, 1.5, 2.5, 325.0)
