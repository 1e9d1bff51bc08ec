"""What is measured of cost, and what is concluded from it."""

from __future__ import annotations

import pytest
import torch

from regard.compare.cost import CostCell
from regard.compare.parsing import parse_length, parse_lengths, parse_mechanism
from regard.compare.scaling import exponent, projected
from regard.compare.summary import curves, predictions
from regard.experiments.timing import Ceilings, Ratio

SMALL = {"heads": 2, "kv_heads": 2, "head_dim": 8, "memory": False}


def test_ratios_are_of_neighbouring_runs():
    ratio = Ratio.of([2.0, 6.0, 3.0, 8.0, 5.0], [1.0, 2.0, 1.5, 2.0, 2.5])
    assert (ratio.seconds, ratio.baseline, ratio.median) == (5.0, 2.0, 2.0)
    assert (ratio.low, ratio.high, ratio.rounds) == (2.0, 3.0, 5)


def test_the_floor_is_the_slower_of_the_two_ceilings():
    roof = Ceilings(flops=100.0, bytes=10.0)
    assert roof.floor(1000, 10) == 10.0
    assert roof.floor(100, 70) == 7.0


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_exponents_are_recovered_with_their_error(power):
    lengths = [2**i for i in range(5, 13)]
    fitted = exponent(lengths, [3e-6 * n**power for n in lengths])
    assert fitted.value == pytest.approx(power, abs=1e-9)
    assert fitted.error == pytest.approx(0, abs=1e-7)
    noisy = exponent(lengths, [3e-6 * n**power * (1.1 if i % 2 else 0.9) for i, n in enumerate(lengths)])
    assert noisy.error > 0.01
    assert abs(noisy.value - power) < 3 * noisy.error
    assert exponent([64], [1.0]) is None
    assert exponent([64, 128], [1.0, 2.0]).error is None


def test_the_small_lengths_do_not_count_for_the_exponent():
    lengths = [2**i for i in range(4, 12)]
    fitted = exponent(lengths, [max(1e-3, 1e-7 * n**2) for n in lengths])
    assert fitted.value > 1.5


def test_projections_are_exact_where_cost_is_a_line_and_never_negative():
    lengths = [100, 200, 400]
    seconds, error = projected(lengths, [0.5 + 0.01 * n for n in lengths], float, 1000)
    assert (seconds, error) == (pytest.approx(10.5), pytest.approx(0, abs=1e-9))
    falling, _ = projected(lengths, [3.0, 2.0, 1.0], float, 10**6)
    assert falling > 0
    with pytest.raises(ValueError, match=r"--project: got 1 measured length"):
        projected([100], [1.0], float, 1000)


@pytest.mark.parametrize("level", ["mechanism", "block", "lm"])
@pytest.mark.parametrize("phase", ["prefill", "decode", "train"])
def test_every_level_and_phase_is_measured(level, phase):
    figures = CostCell("window(size=5)", phase, 37, level=level, **SMALL).run()
    assert figures["seconds"] > 0
    assert figures["ratio_low"] <= figures["ratio"] <= figures["ratio_high"]
    assert figures["rounds"] >= 3
    assert figures["floor_seconds"] > 0
    assert figures["state_bytes"] > 0
    if phase == "prefill":
        assert figures["flops_counted"] == pytest.approx(figures["flops_formula"], rel=0.02)


def test_signals_and_threads_are_part_of_a_cell():
    figures = CostCell("aha(of='window(size=3)')", "prefill", 29, **SMALL).run()
    assert figures["time_growth"] == "quadratic"
    assert torch.get_num_threads() == 1


def test_memory_is_measured_in_a_process_of_its_own():
    figures = CostCell("sigmoid", "prefill", 3001, heads=1, kv_heads=1, head_dim=8).run()
    assert 0 < figures["peak_bytes"] < 3001**2 * 4  # less than the matrix


def test_curves_and_predictions_come_from_rows():
    cells = [CostCell("lightning", "prefill", n, **SMALL) for n in (64, 128, 256)]
    rows = [
        {"kind": "cost", **cell.fields, "seconds": 1e-5 * cell.length, "baseline_seconds": 1e-9 * cell.length**2}
        | {"time_growth": "linear", "state_growth": "constant", "state_bytes": 512}
        for cell in cells
    ]
    (curve,) = curves(rows[::-1])
    assert curve.lengths == [64, 128, 256]
    assert (curve.fitted.value, curve.claimed) == (pytest.approx(1), 1)
    (row,) = predictions([curve], [1 << 20])
    assert row["predicted"] is True
    assert row["seconds"] == pytest.approx(1e-5 * 2**20, rel=0.02)
    assert row["baseline_seconds"] == pytest.approx(1e-9 * 2**40, rel=0.02)
    assert row["state_bytes"] == 512


def test_lengths_as_people_write_them():
    assert parse_lengths("1k..8k") == [1024, 2048, 4096, 8192]
    assert parse_lengths("512, 3,1m") == [3, 512, 1 << 20]
    assert parse_length("10M") == 10 << 20
    for bad in ("", "x", "8k..1k", "0", "1kk", "-3"):
        with pytest.raises(ValueError, match="--lengths"):
            parse_lengths(bad)


def test_mechanisms_as_people_write_them():
    assert parse_mechanism("window,size=64,sinks=4") == "window(size=64, sinks=4)"
    assert parse_mechanism("window(size=64, sinks=4)") == "window(size=64, sinks=4)"
    assert parse_mechanism("softmax") == "softmax"
    with pytest.raises(ValueError, match="mechanism"):
        parse_mechanism("window,64")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phase": "sleep"}, "phase: got 'sleep', want one of prefill, decode, train"),
        ({"level": "city"}, "level: got 'city'"),
        ({"dtype": "int8"}, "dtype: got 'int8'"),
        ({"length": 0}, "length: got 0, want at least 1"),
        ({"kv_heads": 3}, "kv_heads: got 3, want a divisor of the 2 heads"),
    ],
)
def test_bad_cells_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        CostCell(**{"mechanism": "softmax", "phase": "train", "length": 8, **SMALL} | change)
