"""Measuring what a cache loses: questions of any length, seen at the eviction or not."""

from __future__ import annotations

import pytest
import torch

from regard.compare.cache_report import Prompt, measured
from unit.hosts.models import causal, tokens


@pytest.mark.parametrize("question", [1, 3])
@pytest.mark.parametrize("known", [(True, False), (True,), (False,)])
def test_a_question_of_any_length_is_measured_known_and_unknown(question, known):
    model, ids = causal("Llama"), tokens(1, 19)[0]
    prompt = Prompt(*ids.split([14, question, 5 - question]))
    found = list(measured(model, [prompt], [("streaming(sinks=1)", 6), ("knorm", 0.5)], known))
    assert [(row.policy, row.known) for row in found] == [
        (name, asked) for asked in sorted(known) for name in ("full", found[1].policy, found[2].policy)
    ]
    logs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    n = len(prompt.answer)
    want = -logs[-n - 1 : -1].gather(1, prompt.answer[:, None]).mean().item()
    for row in found:
        if row.policy == "full":
            assert row.nats == pytest.approx(want, abs=1e-5)
    if question == 1 and len(known) == 2:  # what is read before the eviction is the same then
        for name in {row.policy for row in found}:
            one, other = (row.nats for row in found if row.policy == name)
            assert one == pytest.approx(other, abs=1e-5)


def test_nothing_is_read_where_there_is_nothing_left():
    from regard.compare.cache_report import read_on
    from regard.policies import Full

    assert read_on(None, Full(), None, torch.zeros(1, 0, dtype=torch.int64)) == 0.0
