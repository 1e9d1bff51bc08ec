"""The figures of a comparison on numbers that a reader can check, and what is not said as a fact."""

import math

import pytest
import torch
import torch.nn.functional as F

from regard.compare import cost
from regard.compare.cost import CostCell, fused_decode, least
from regard.compare.scaling import Exponent, exponent, student
from regard.compare.summary import Curve, floor_of
from regard.compare.tables import line
from regard.compare.workloads import MechanismWorkload
from regard.experiments import timing
from regard.web.results import shown

SMALL = {"heads": 2, "kv_heads": 2, "head_dim": 8, "memory": False}
FIGURES = {"seconds": 2e-3, "ratio": 1.5, "ratio_low": 1.2, "ratio_high": 1.9, "state_bytes": 512}
ROW = {"kind": "cost", "length": 64, "flops_counted": 3 * 10**9, "flops_formula": None, **FIGURES}


def test_the_standard_error_of_an_exponent_by_hand():
    """log2 of times 0, 1, 5 over log2 of lengths 0, 1, 2: slope 2.5, residuals ½, −1, ½, spread 2: error √(1.5 / 2)."""
    fitted = exponent([1, 2, 4], [1.0, 2.0, 32.0])
    assert (fitted.value, fitted.error) == (pytest.approx(2.5), pytest.approx(math.sqrt(0.75)))
    assert fitted.half == pytest.approx(12.706 * math.sqrt(0.75))
    assert not fitted.settled


def test_the_upper_half_of_the_lengths_at_least_three():
    """Of eight lengths four count, of five three: the others may take any time."""
    for count, used in ((8, 4), (5, 3), (3, 3), (2, 2)):
        lengths = [2**i for i in range(count)]
        seconds = [9.0] * (count - used) + [float(n**2) for n in lengths[-used:]]
        assert exponent(lengths, seconds).value == pytest.approx(2)
        assert exponent(lengths, seconds).lengths == used


def test_student_by_the_table():
    assert [student(freedom) for freedom in (1, 2, 9, 40)] == [12.706, 4.303, 2.262, 2.262]


@pytest.mark.parametrize(
    ("fitted", "said"),
    [
        (None, "claimed n^2"),
        (Exponent(1.8, None, 2), "claimed n^2; not settled by 2 lengths"),
        (Exponent(1.62, 0.1, 3), "claimed n^2; not settled by 3 lengths (n^1.6 ± 1.3)"),
        (Exponent(1.97, 0.01, 3), "n^1.97 ± 0.13, claimed n^2"),
        (Exponent(1.97, 0.05, 6), "n^1.97 ± 0.14, claimed n^2"),
    ],
)
def test_growth_is_said_where_the_lengths_settle_it(fitted, said):
    assert Curve((ROW,), fitted, 2.0).growth == said


def test_a_floor_above_the_time_is_none():
    held, broken = ({**ROW, "floor_seconds": floor} for floor in (1e-3, 3e-3))
    assert (floor_of(held), floor_of(broken), floor_of(ROW)) == (1e-3, None, None)
    assert line(held)[4] == "1 ms"
    assert line(broken)[4] == "above time"
    assert shown(held)["floor_seconds"] == 1e-3
    assert "floor_seconds" not in shown(broken)


def test_ceilings_by_hand(monkeypatch):
    """1,536³ multiply-adds in the best of six times, 2 s; 2^24 numbers of 4 bytes read and written in 1 s."""
    times = iter([3.0, 2.0, 5.0, 4.0, 2.5, 9.0, 7.0, 1.0, 3.0, 2.0, 4.0, 6.0])
    monkeypatch.setattr(timing, "clock", lambda work, device: next(times))
    roof = timing.ceilings.__wrapped__(torch.device("cpu"), torch.float32, 1)
    assert (roof.flops, roof.bytes) == (2 * 1536**3 / 2.0, 2 * (1 << 24) * 4 / 1.0)
    assert roof.floor(int(roof.flops * 3), 0) == pytest.approx(3)
    assert roof.floor(0, int(roof.bytes * 5)) == pytest.approx(5)


@pytest.mark.parametrize(
    ("mechanism", "phase", "flops", "moved"),
    [
        ("softmax", "prefill", 1 / 2, 1),  # causality hides half of the pairs
        ("softmax", "train", 3 / 2, 3),
        ("lightning", "prefill", 1, 1),
        ("lightning", "train", 3, 3),
    ],
)
def test_what_a_phase_cannot_do_without(mechanism, phase, flops, moved):
    cell = CostCell(mechanism, phase, 37, **SMALL)
    subject = cell.subject()
    formula = subject.cost(37)
    assert least(cell, subject, None) == (int(formula.flops * flops), int(formula.bytes * moved))


def test_a_step_of_decoding_reads_the_state_once():
    cell = CostCell("softmax", "decode", 37, **SMALL)
    assert least(cell, cell.subject(), 123) == (123, 2 * 2 * 37 * 8 * 4)  # keys and values of two heads


def test_the_baseline_decodes_after_as_many_tokens(monkeypatch):
    """n + 1 keys, then one more each time, and from n + 1 again when its room is used up."""
    seen, real = [], F.scaled_dot_product_attention
    monkeypatch.setattr(cost, "ROOM", 3)
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, **how: seen.append(k.shape[2]) or real(q, k, v, **how)
    )
    cell = CostCell("softmax", "decode", 17, **SMALL)
    work = fused_decode(MechanismWorkload("softmax", cell.sizes), 17)
    for _ in range(5):
        work()
    assert seen == [18, 19, 20, 18, 19]


def test_rounds_and_turns(monkeypatch):
    """Each is warmed up once and runs in turn; ratios are of neighbours."""
    order = []
    monkeypatch.setattr(timing, "clock", lambda work, device: work())
    mine, theirs = (lambda: order.append("a") or 6.0), (lambda: order.append("b") or 3.0)
    ratio = timing.interleaved(mine, theirs, torch.device("cpu"), seconds=1e9, rounds=4)
    assert "".join(order) == "ab" * 5
    assert (ratio.rounds, ratio.median, ratio.seconds, ratio.baseline) == (4, 2.0, 6.0, 3.0)
    assert timing.interleaved(mine, theirs, torch.device("cpu"), seconds=0, rounds=9).rounds == 3


def test_medians_of_work_in_turn_leave_the_first_round_out(monkeypatch):
    calls, now = [], [0.0]

    def work(name, seconds):
        calls.append(name)
        now[0] += seconds[min(calls.count(name), len(seconds)) - 1]

    monkeypatch.setattr(timing.time, "process_time", lambda: now[0])
    found = timing.medians({"a": lambda: work("a", (9, 1, 2, 3)), "b": lambda: work("b", (0, 5))}, rounds=3)
    assert (found, calls) == ({"a": 2, "b": 5}, ["a", "b"] * 4)
