"""Gates that keep one task and lose another shut the head that the other one needs."""

import pytest
import torch

from regard.analysis.base import Prompt
from regard.analysis.contrastive_gates import contrastive_gates, shut
from regard.analysis.head_gates import CausalHeadGating, HeadGates, answer_loss
from regard.analysis.planted import PLACES, planted_model
from regard.hosts.attach import attach


def prompts(seed, count=6):
    draw = torch.Generator().manual_seed(seed)
    return [Prompt(torch.randint(0, 29, (11,), generator=draw), answer=5) for _ in range(count)]


def test_heads_that_say_nothing_stay_open_and_the_lost_task_costs_more_than_the_kept_one():
    model, keep, forget = planted_model(), prompts(0), prompts(1)
    gates = contrastive_gates(model, keep, forget, CausalHeadGating(steps=40, batch=6))
    again = contrastive_gates(model, keep, forget, CausalHeadGating(steps=40, batch=6))
    assert gates.equal(again)
    silent = [(layer, head) for layer in (0, 1) for head in range(3) if (layer, head) not in PLACES]
    assert all(gates[place] > 0.9 for place in silent)
    assert set(shut(gates)) <= set(PLACES)

    def apart(of):
        with torch.no_grad(), attach(model, edits=[HeadGates(of)]):
            return float(answer_loss(model, forget) - answer_loss(model, keep))

    assert apart(gates) > max(apart(torch.ones_like(gates)), apart(torch.zeros_like(gates)))


def test_the_same_task_on_both_sides_leaves_all_open():
    """What is lost is what is kept: only the pull is left."""
    model, same = planted_model(), prompts(2, 4)
    gates = contrastive_gates(model, same, same, CausalHeadGating(steps=25, batch=4))
    assert gates.min() > 0.9


def test_prompts_without_answers_are_named():
    with pytest.raises(ValueError, match=r"^forget: got 1 prompts, want some, each with an answer"):
        contrastive_gates(planted_model(), prompts(0), [Prompt(torch.arange(5))])
    with pytest.raises(ValueError, match=r"^keep: got 0 prompts"):
        contrastive_gates(planted_model(), [], prompts(0))
