"""Focus directions are added before positions, and learned so that heads look at what is relevant."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.edits import FocusDirections, Trace
from regard.hosts.focus import Marked, contextual_heads, learned, random_like, relevant_mass
from regard.hosts.focus_control import activation, controlled
from unit.hosts.models import causal, tokens
from unit.hosts.test_attach import logits
from unit.hosts.test_watch import CLOSE, Dense, left_as_it_was


def directions(seed=0):
    source = torch.Generator().manual_seed(seed)
    return [{layer: torch.randn(heads, 4, generator=source) for layer in (0, 1)} for heads in (6, 3)]


@torch.no_grad()
@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_they_are_a_bias_of_the_projections(name):
    model, ids, (q, k) = causal(name), tokens(2, 11), directions()
    with regard.steer(model, FocusDirections(q, k, 0.7), kept := Trace("k_pre")):
        got = logits(model, ids)
    plain = logits(model, ids)
    for layer, block in enumerate(model.model.layers):
        for projection, held in ((block.self_attn.q_proj, q), (block.self_attn.k_proj, k)):
            projection.bias = torch.nn.Parameter(0.7 * held[layer].flatten())
    torch.testing.assert_close(got, logits(model, ids), **CLOSE)
    assert (got - plain).abs().max() > 0.01
    assert kept.get("k_pre", 1).shape == (2, 11, 12)


def test_generated_tokens_have_them_too():
    model, ids, (q, k) = causal("Llama"), tokens(2, 9), directions()
    usual = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    usual |= {"attention_mask": torch.ones_like(ids)}
    with regard.steer(model, FocusDirections(q, k)):
        cached = model.generate(ids, **usual)
        assert torch.equal(cached, model.generate(ids, use_cache=False, **usual))
        beams = model.generate(ids, num_beams=3, **usual)
        assert torch.equal(beams, model.generate(ids, num_beams=3, use_cache=False, **usual))
    assert not torch.equal(cached, model.generate(ids, **usual))


def prompts():
    return [Marked(tokens(1, size, seed=size)[0], (2, 5)) for size in (9, 12, 11)]


@torch.no_grad()
def test_heads_are_ranked_by_the_mass_of_what_is_relevant():
    model, examples, every = causal("Llama"), prompts(), {}
    for one in examples:
        with regard.watch(model, [probe := Dense(len(one.ids))]):
            logits(model, one.ids[None])
        for layer, maps in probe.result().items():
            for head in range(6):
                every[layer, head] = every.get((layer, head), 0) + float(maps[0, head, -1, 2:5].sum()) / 3
    mass = relevant_mass(model, examples)
    assert mass[1].shape == (3, 6)
    assert all(abs(float(mass[layer][:, head].mean()) - value) < 1e-5 for (layer, head), value in every.items())
    best = sorted(every, key=lambda at: -every[at])[:5]
    found = contextual_heads(model, examples, 5)
    assert {(layer, head) for layer, heads in found.items() for head in heads} == set(best)
    with pytest.raises(ValueError, match="count: got 13, want 1 to 12"):
        contextual_heads(model, examples, 13)


def test_they_are_learned_for_their_heads_alone_and_the_model_is_not():
    model, examples, heads = causal("Llama"), prompts(), {0: [1], 1: [0, 5]}
    weights = [parameter.clone() for parameter in model.parameters()]
    edit = learned(model, heads, examples, steps=30)
    assert edit.of_queries[0][[0, 2, 3, 4, 5]].abs().max() == 0 == edit.of_keys[0][[1, 2]].abs().max()
    assert edit.of_keys[1][[0, 2]].norm(dim=1).min() > 0 == edit.of_keys[1][1].norm()
    assert all(torch.equal(one, other) for one, other in zip(weights, model.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        plain, own, other = (
            torch.cat([mass.flatten() for mass in relevant_mass(model, examples, *edits, heads=heads).values()]).mean()
            for edits in ([], [edit], [random_like(edit, 0)])
        )
    assert own > 1.3 * plain
    assert own > 1.3 * other
    drawn = random_like(edit, 0)
    torch.testing.assert_close(drawn.of_queries[1].norm(dim=1), edit.of_queries[1].norm(dim=1))


def test_directions_of_another_size_are_refused():
    model, ids, (q, k) = causal("Llama"), tokens(1, 9), directions()
    with regard.steer(model, FocusDirections(k, q)), pytest.raises(ValueError, match=r"of_queries: got \(3, 4\)"):
        logits(model, ids)
    with pytest.raises(ValueError, match=r"of_keys: got layers \[0\]"):
        FocusDirections(q, {0: k[0]})
    fused = causal("GPT2")
    config = fused.config.to_dict()
    with pytest.raises(ValueError, match="no module 'k_proj'"), regard.steer(fused, FocusDirections(q, k)):
        logits(fused, ids)
    assert left_as_it_was(fused, config)


def test_what_prompts_share_may_be_read_once():
    """The same masses and gradients, under directions too; prompts of two lengths, or none behind it, are refused."""
    model, ids, (q, k) = causal("Llama"), tokens(5, 12), directions()
    ids[:3, :8], ids[3:, :8] = ids[0, :8], ids[4, :8]
    examples = [Marked(row, (2, 5)) for row in ids]
    found = []
    for shared in (0, 8):
        of_queries = {layer: held.clone().requires_grad_() for layer, held in q.items()}
        masses = relevant_mass(model, examples, FocusDirections(of_queries, k, 0.7), shared=shared)
        sum(mass.log().sum() for mass in masses.values()).backward()
        found.append([*masses.values(), of_queries[0].grad])
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"shared: got 12 of \[12\] tokens"):
        relevant_mass(model, examples, shared=12)
    with pytest.raises(ValueError, match=r"shared: got 3 of \[11, 12\] tokens"):
        relevant_mass(model, [*examples, Marked(ids[0, :11], (2, 5))], shared=3)


def from_the_sink(model, examples):
    """Directions that were learned to look at what is relevant, from a first token that takes most of the mass."""
    heads = {0: [0, 2, 4], 1: [1, 3]}
    return heads, learned(model, heads, examples, steps=15, rate=0.1)


@torch.no_grad()
def test_what_is_taken_from_the_sink_stays_within_a_range():
    model, examples = causal("Llama"), prompts()
    with torch.enable_grad():
        heads, edit = from_the_sink(model, examples)
    ids = examples[1].ids
    full = activation(model, edit.at(8.0), ids, heads)
    within = (0.3 * full, 0.6 * full)
    found = controlled(model, edit, ids, heads, within)
    assert found.held
    assert within[0] <= found.activation <= within[1]
    seen = []
    for edits in ((), (found.edit,)):
        with regard.watch(model, [probe := Dense(len(ids))]), regard.steer(model, *edits):
            logits(model, ids[None])
        seen.append(torch.cat([maps[0, heads[layer], -1, 0] for layer, maps in probe.result().items()]).mean())
    assert float(seen[0] - seen[1]) == pytest.approx(found.activation, abs=1e-5)
    never = controlled(model, edit, ids, heads, (0.97, 1.0))
    assert not never.held
    assert never.activation < 0.97
    none = controlled(model, FocusDirections(*directions(), 1.0).at(1.0), ids, heads, (0.0, 1.0))
    assert none.edit.alpha == 1.0 or not none.held


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"within": (0.4, 0.2)}, "within: got"), ({"sink": 0}, "sink: got 0"), ({"sink": 9}, "sink: got 9")],
)
def test_ranges_that_are_none_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        controlled(causal("Llama"), FocusDirections(*directions()), tokens(1, 9)[0], {0: [0]}, **arguments)
