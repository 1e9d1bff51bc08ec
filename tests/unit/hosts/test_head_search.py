"""A search over heads finds those that help alone, by figures made once more, and goes on where it was stopped."""

from __future__ import annotations

import json

import pytest
import torch

import regard
from regard.edits import ACT, HeadAblation
from regard.hosts.calibrate import Answered, log_probability
from regard.hosts.head_search import HeadSearch, search_heads
from unit.hosts.models import causal, tokens


def planted(model, edit, count):
    """Prompts whose answers are what the model says under an edit."""
    with regard.steer(model, edit), torch.no_grad():
        prompts = [tokens(1, 13, seed=seed) for seed in range(count)]
        return [Answered(one[0], model(input_ids=one).logits[0, -1:].argmax(-1)) for one in prompts]


def test_the_head_that_helps_is_found_and_each_stands_for_itself():
    model = causal("Llama")
    examples, told = planted(model, HeadAblation({1: [4]}), 12), []
    found = search_heads(model, HeadAblation, examples, by="log_probability", report=lambda *x: told.append(x))
    assert len(found.found) == 12
    assert found.found[1, 4][0] == 1.0
    assert found.found[1, 4][0] > found.base[0]
    assert min(right for right, _ in found.found.values()) < 1
    for place in ((0, 2), (1, 4)):
        each = [log_probability(model, one, HeadAblation({place[0]: [place[1]]})) for one in examples]
        assert found.found[place][1] == pytest.approx(sum(each) / len(each), abs=1e-5)
    assert 4 in found.heads[1]
    assert told == [(layer, head, found.gains[layer, head]) for layer in (0, 1) for head in range(6)]


def test_heads_that_gain_are_kept_by_either_figure():
    found = {(0, 1): (0.5, -1.0), (0, 3): (0.75, -3.0), (2, 0): (0.5, -1.5), (2, 5): (1.0, -2.5)}
    assert HeadSearch((0.5, -2.0), found).heads == {0: [3], 2: [5]}
    assert HeadSearch((0.5, -2.0), found, "log_probability").heads == {0: [1], 2: [0]}


def test_a_stopped_search_goes_on_and_another_one_does_not(tmp_path):
    model = causal("Llama")
    examples = planted(model, HeadAblation({0: [1]}), 3)

    def act(heads):
        return ACT(0.3, 0.12, heads=heads)

    class StoppedError(Exception):
        pass

    def stop(layer, head, gain):
        if head == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        search_heads(model, act, examples, [1], folder=tmp_path, report=stop)
    lines = (tmp_path / "heads.jsonl").read_text().splitlines(keepends=True)
    assert [json.loads(line)["head"] for line in lines] == [-1, 0, 1, 2, 3]
    (tmp_path / "heads.jsonl").write_text("".join(lines)[:-9])  # killed while it wrote the last line
    whole = search_heads(model, act, examples, [1])
    assert search_heads(model, act, examples, [1], folder=tmp_path) == whole
    assert len((tmp_path / "heads.jsonl").read_text().splitlines()) == 7
    for other in (examples[:2], examples):
        with pytest.raises(ValueError, match="folder"):
            search_heads(model, act if other is not examples else HeadAblation, other, [1], folder=tmp_path)
    with pytest.raises(ValueError, match="examples, layers: got 0"):
        search_heads(model, act, [], [1])
