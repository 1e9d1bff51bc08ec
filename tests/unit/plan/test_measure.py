"""What a measured step is."""

from __future__ import annotations

from regard.networks import LM, Config
from regard.plan import measure


def test_a_step_is_one_token_after_the_context_and_its_time_the_median(monkeypatch):
    model, fed = LM(Config(vocabulary=11, width=8, layers="softmax", heads=2), seed=0), []
    extend = model.extend
    monkeypatch.setattr(model, "extend", lambda ids, state: (fed.append(tuple(ids.shape)), extend(ids, state))[1])
    told = iter([99.0, 5.0, 2.0, 3.0])
    monkeypatch.setattr(measure, "clock", lambda work, device: (work(), next(told))[1])
    assert measure.seconds_of_step(model, 3, 7, rounds=3) == 3.0  # the first warms up
    assert fed == [(3, 7)] + [(3, 1)] * 4
