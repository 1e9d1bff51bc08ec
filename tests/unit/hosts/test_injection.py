"""Soft injection: states are those at the prompts' last tokens, shares are learned with the model frozen."""

from __future__ import annotations

import torch

import regard
from regard.edits import SoftInjection, Trace
from regard.hosts.calibrate import Answered
from regard.hosts.injection import learned, task_states, together
from unit.hosts.models import causal, tokens
from unit.hosts.test_attach import logits
from unit.hosts.test_watch import CLOSE


def test_states_are_means_at_the_last_tokens_of_prompts_of_any_length():
    model = causal("Llama")
    prompts = [tokens(1, size, seed=size)[0] for size in (5, 11, 7)]
    found, alone = task_states(model, prompts), []
    for prompt in prompts:
        with regard.steer(model, trace := Trace("z")):
            logits(model, prompt[None])
        alone.append(trace.get("z", 1)[0, :, -1])
    torch.testing.assert_close(found[1], torch.stack(alone).mean(0), **CLOSE)


def test_at_full_share_heads_say_the_state_and_nothing_before_the_last_token_changes():
    model, ids = causal("Llama"), tokens(1, 9)
    states = {1: torch.randn(6, 4)}
    with regard.steer(model, before := Trace("z"), SoftInjection(states, heads=[2]), after := Trace("z")):
        logits(model, ids)
    torch.testing.assert_close(after.get("z", 1)[0, 2, -1], states[1][2], **CLOSE)
    assert torch.equal(after.get("z", 1)[:, :, :-1], before.get("z", 1)[:, :, :-1])


def test_shares_are_learned_and_the_model_is_not():
    model = causal("Llama")
    states = task_states(model, [tokens(1, 12, seed=3)[0]])
    true = {0: torch.ones(6), 1: torch.zeros(6)}
    with regard.steer(model, SoftInjection(states, true)):
        prompts = [tokens(1, 5 + seed % 3, seed=seed)[0] for seed in range(6)]
        answers = [logits(model, prompt[None])[0, -1:].argmax(-1) for prompt in prompts]
    examples = [Answered(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    weights = [parameter.clone() for parameter in model.parameters()]

    def loss(alpha):
        with regard.steer(model, SoftInjection(states, alpha)), torch.no_grad():
            out = model(**together(prompts), use_cache=False).logits[:, -1]
        return torch.nn.functional.cross_entropy(out, torch.cat(answers))

    alpha = learned(model, states, examples, steps=40)
    assert all(0 <= share <= 1 for shares in alpha.values() for share in shares.tolist())
    assert loss(alpha) < min(loss(true) + 0.02, loss(0.5) - 0.1)
    assert all(torch.equal(one, other) for one, other in zip(weights, model.parameters(), strict=True))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
