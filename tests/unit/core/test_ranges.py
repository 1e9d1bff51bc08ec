"""Signals out of their declared ranges: named where numbers are at hand, NaN where looking would wait for a device."""

import pytest
import torch

from regard import build
from regard.core import mechanism as contract
from regard.core.mechanism import Signal

GATE = Signal("how far it is open", low=-0.25, high=1)


@pytest.mark.parametrize("value", [float("nan"), -0.26, 1.01, float("inf")])
def test_what_came_and_what_is_wanted(value):
    x = torch.tensor([0.0, 1.0, value])
    came = "NaN" if value != value else f"numbers from {min(0.0, value):.6g} to {max(1.0, value):.6g}"
    with pytest.raises(ValueError, match="gate: got ") as error:
        GATE.check("gate", x)
    assert str(error.value) == f"gate: got {came}, want -0.25 to 1: how far it is open"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_ends_belong_to_it_in_any_precision(dtype):
    GATE.check("gate", torch.tensor([GATE.low, GATE.high], dtype=dtype))
    GATE.check("gate", torch.empty(0, dtype=dtype))
    Signal("log", high=0).check("log_decay", torch.tensor([-torch.inf, 0.0], dtype=dtype))
    build("rwkv7").signals["log_decay"].check(
        "log_decay", torch.tensor([build("rwkv7").signals["log_decay"].low], dtype=dtype)
    )


def test_numbers_that_are_not_at_hand_become_nan(monkeypatch):
    x = torch.tensor([-0.3, 0.5, 2.0, torch.nan], requires_grad=True)
    assert GATE.guarded(x) is x
    monkeypatch.setattr(contract, "at_hand", lambda _: False)
    GATE.check("gate", x)
    assert GATE.guarded(x).isnan().tolist() == [True, False, True, True]
    q, k, v = (torch.randn(1, 2, 5, 3) for _ in range(3))
    beta = torch.rand(1, 2, 5)
    beta[0, 1, 3] = -1
    out = build("deltanet")(q, k, v, beta=beta)
    assert out[0, 1, 3:].isnan().all()
    assert out[0, 0].isfinite().all()
