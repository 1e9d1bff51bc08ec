"""A calibration finds what helps, holds it to examples and controls that it has not seen, or does not recommend it."""

from __future__ import annotations

import random

import pytest
import torch

import regard
from regard.edits import HeadAblation, Highlight
from regard.hosts.calibrate import Answered, Calibration, controls_of
from unit.hosts.models import causal, tokens

HEADS = {0: [1, 4, 5], 1: [0, 2, 3]}
HELPS = Highlight([(2, 5)], 4.0, heads=HEADS)


def planted(model, count: int) -> list[Answered]:
    """Prompts whose answers are what the model says under an edit."""
    examples = []
    with regard.steer(model, HELPS), torch.no_grad():
        for seed in range(count):
            prompt = tokens(1, 17, seed=seed)
            examples.append(Answered(prompt[0], model(input_ids=prompt).logits[0, -1:].argmax(-1)))
    return examples


def test_what_helps_is_found_and_stands_above_its_controls():
    model = causal("Llama")
    candidates = {"helps": HELPS, "hurts": HeadAblation({0: [0, 1, 2]}), "made": lambda _: Highlight([(7, 8)], 1.0)}
    found = regard.calibrate(model, candidates, planted(model, 24))
    assert found.best == "helps"
    assert found.searched.keys() == candidates.keys()
    assert found.recommended
    assert 0 < found.low < found.gain < found.high
    assert {name: len(gains) for name, gains in found.controls.items()} == {"heads": 5, "tokens": 5}
    assert str(found).startswith("helps: +")


def test_what_does_not_help_is_not_recommended():
    model = causal("Llama")
    examples = [Answered(one.prompt, tokens(1, seed=index)) for index, one in enumerate(planted(model, 20))]
    found = regard.calibrate(model, [Highlight([(2, 5)], 1.0), Highlight([(4, 6)], 1.0)], examples)
    assert not found.recommended
    assert "not recommended, as" in str(found)
    for low, high, other, why in ((-1, 1, 0, "contains 0"), (-2, -1, -3, "it hurts"), (1, 2, 9, "controls do as well")):
        told = Calibration("x", HELPS, {}, (low + high) / 2, low, high, (2, 2), {"heads": [other]})
        assert not told.recommended
        assert why in str(told)


def test_controls_are_other_heads_and_other_keys_of_the_same_number():
    model, example = causal("Llama"), planted(causal("Llama"), 1)[0]
    found = controls_of(HELPS, example, model, random.Random(0))
    for control in found["heads"]:
        assert {layer: len(heads) for layer, heads in control(example).where.heads.items()} == {0: 3, 1: 3}
        assert not set(control(example).where.heads[0]) & {1, 4, 5}
        assert control(example).strength == 4.0
    spans = [control(example).where.keys for control in found["tokens"]]
    assert all(0 <= start < stop <= 17 for keys in spans for start, stop in keys)
    assert all(sum(stop - start for start, stop in keys) == 3 and keys != [(2, 5)] for keys in spans)


def test_bad_input_is_named():
    model = causal("Llama")
    with pytest.raises(ValueError, match="candidates: got none"):
        regard.calibrate(model, {}, planted(model, 4))
    with pytest.raises(ValueError, match=r"examples: got 3 with split=0.5, want at least two"):
        regard.calibrate(model, [HELPS], planted(model, 3))
