"""FLAT and FuseMax beside the published results of a simulator, and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regard.studies.flat import FLAT, FUSEMAX, Attention, Chip, Dataflow, dataflows, flat, fusemax, published, sweeps

ROWS = json.loads((Path(__file__).parents[2] / "reference" / "fusemax.json").read_text())["rows"]
SMALL = Chip(side=4, clock=10.0, bandwidth=6.0, buffer=400, exponential=3)
TASK = Attention(heads=3, n=20, e=5, batch=2, inner=7)


def near(value: float):
    return pytest.approx(value, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['model']}-{row['n']}")
def test_the_simulator(row):
    """What spills, bytes and seconds of FLAT's published dataflow; seconds of the one that is found; FuseMax's."""
    task = published(row["model"], row["n"])
    dataflow = Dataflow(row["rows"], row["fused"], frozenset(row["kept"]))
    assert dataflow.spilled(FLAT, task) == near(row["spilled"])
    if "flat" in row:
        assert dataflow.traffic(FLAT, task) == near(row["flat"]["bytes"])
        assert dataflow.seconds(FLAT, task) == near(row["flat"]["seconds"])
        assert flat(task).seconds(FLAT, task) == near(row["flat"]["seconds"])
        assert fusemax(task) == (near(row["fusemax"]["seconds"]), row["fusemax"]["bytes"])
        assert FLAT.linear(task) == pytest.approx(row["linear"], rel=1e-12 if row["model"] != "T5" else 0.05)


def test_what_spills_by_hand():
    """200 numbers fit; 8 rows take 8 · 20, and twice 5 times those kept or 4 of each other; whole heads spill."""
    assert Dataflow(4).spilled(SMALL, TASK) == 1 - 200 / (4 * 20 + 2 * 16 * 5)
    assert Dataflow(8, kept=frozenset("qv")).spilled(SMALL, TASK) == 1 - 200 / (8 * 20 + 2 * (8 + 4 + 20 + 4) * 5)
    assert Dataflow(4).spilled(Chip(side=4, buffer=480), TASK) == 0


def test_bytes_and_seconds_by_hand():
    """2,400 scores; a number fetched once is 2 · 5 / 20 bytes a score, by blocks 2 · 5 / 4."""
    dataflow, share = Dataflow(4, kept=frozenset("k")), 1 - 200 / (80 + 2 * (4 + 20 + 4 + 4) * 5)
    assert dataflow.traffic(SMALL, TASK) == near(2400 * (2 * 2.5 + 0.5 * (1 - share) + 2.5 * share + 0.5 + 14 * share))
    assert dataflow.seconds(SMALL, TASK) == near(dataflow.traffic(SMALL, TASK) / 6)
    unfused = Dataflow(10, fused=False)
    assert unfused.traffic(SMALL, TASK) == near(2400 * (8 + 2.0 + 1.0))
    fast = Chip(side=4, clock=10.0, bandwidth=1e9, buffer=400)
    assert dataflow.seconds(fast, TASK) == near(2 * 3 * 25 * 16 / 10)
    wide = Attention(heads=3, n=20, e=9, batch=2)
    assert dataflow.seconds(fast, wide) == near(2 * 3 * 25 * 18 / 10)
    assert unfused.seconds(fast, wide) == near(2 * 3 * 25 * 2 * 4 * 3 / 10)


def test_fusemax_by_hand():
    """150 blocks of 6 + 1 + 1 + 5 + 5 cycles; 400 − 80 bytes hold 3 blocks of 4 queries, of 5, so each is alone."""
    assert sweeps(TASK, SMALL) == 5
    seconds, moved = fusemax(TASK, SMALL)
    assert moved == 2 * 3 * 20 * 2 * 10 * 6
    assert seconds == near(max(150 * 18 / 10, moved / 6))
    fast = Chip(side=4, clock=10.0, bandwidth=1e9, buffer=400, exponential=3)
    assert fusemax(TASK, fast)[0] == near(150 * 18 / 10)
    assert fast.linear(TASK) == near(2 * 20 * 15 * (4 * 15 + 14) / 16 / 10)
    assert sweeps(TASK, Chip(side=4, buffer=8 * 1024)) == 1


def test_what_is_chosen():
    """The fastest, and of those that move least; without fusion only where queries, outputs and a row fit."""
    task = published("XLM", 1 << 17)
    found, all_of = flat(task), list(dataflows(FLAT, task))
    assert found == Dataflow(1024, fused=False)
    assert found.seconds(FLAT, task) == min(one.seconds(FLAT, task) for one in all_of)
    small = Chip(buffer=(1 << 18) + 2 * 2 * 2 * 256 * 128)
    assert [one.rows for one in dataflows(small, task) if not one.fused] == [256]


def test_refused():
    for wanted, call in (
        ("a multiple", lambda: fusemax(Attention(1, 300, 8))),
        ("room for", lambda: fusemax(Attention(1, 512, 64), Chip(buffer=1024))),
        ("BERT, TrXL, T5, XLM", lambda: published("GPT", 1024)),
    ):
        with pytest.raises(ValueError, match=wanted):
            call()
    assert FUSEMAX.buffer == 16 * 2**20
