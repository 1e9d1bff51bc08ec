"""What a measured step is."""

from __future__ import annotations

import torch

from regard.networks import LM, Config
from regard.plan import measure


def test_steps_are_one_token_after_each_context_measured_in_turn(monkeypatch):
    """Two batches after two contexts, three rounds: the first warms up, of the others the median counts."""
    model, fed = LM(Config(vocabulary=11, width=8, layers="softmax", heads=2), seed=0), []
    extend = model.extend

    def noted(ids, state):
        fed.append((*ids.shape, int(state.seen[0])))
        return extend(ids, state)

    monkeypatch.setattr(model, "extend", noted)
    took = [*range(1, 5), *range(11, 15), *range(3, 7)]
    told = iter([0.0] * 4 + [number for time in took for number in (100.0, 100.0 + time)])
    monkeypatch.setattr(measure, "process_time", lambda: next(told))
    found = measure.seconds_of_steps(model, (1, 3), (7, 5), rounds=3)
    assert fed[:2] == [(1, 5, 0), (1, 2, 5)]
    assert fed[2:6] == [(1, 1, 5), (3, 1, 5), (1, 1, 7), (3, 1, 7)]
    assert [context for *_, context in fed[6:]] == [6, 6, 8, 8, 7, 7, 9, 9, 8, 8, 10, 10]
    assert found == {(1, 5): 3.0, (3, 5): 4.0, (1, 7): 5.0, (3, 7): 6.0}


def test_sequences_of_a_batch_are_copies_of_one():
    model = LM(Config(vocabulary=11, width=8, layers="softmax", heads=2), seed=0)
    ready = measure.ready_states(model, (3,), (5,))[3, 5]
    apart = model.extend(torch.zeros(3, 5, dtype=torch.int64), model.start(3))[1]
    one, other = (model.extend(torch.tensor([[1], [2], [3]]), state)[0] for state in (ready, apart))
    torch.testing.assert_close(one, other)
