"""Scaled channels reach the queries and keys of their rows alone, and the search finds what the authors' code does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import regard
from reference.steering import states
from regard.core.edit import Edit, Where
from regard.core.mechanism import repeat_heads
from regard.edits import ACT, HeadScale, PositionalHidden, Temperature, Trace, ZeroTuning
from regard.hosts.calibrate import Answered
from regard.hosts.positional import candidates, channels, mean_states, random_strings
from regard.hosts.small import load
from unit.hosts.models import causal, tokens
from unit.hosts.test_attach import logits
from unit.hosts.test_watch import CLOSE, Dense

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "steering.json").read_text())["positional_hidden"]


def row_by_hand(model, ids, scaled, factor):
    """A of the newest token in the first layer, from the layer's own matrices."""
    layer = model.model.layers[0]
    x = layer.input_layernorm(model.model.embed_tokens(ids))
    x = torch.cat([x[..., c : c + 1] * (factor if c in scaled else 1) for c in range(x.shape[-1])], -1)
    q, k = (f(x).unflatten(2, (-1, 4)).transpose(1, 2) for f in (layer.self_attn.q_proj, layer.self_attn.k_proj))
    q, k = apply_rotary_pos_emb(q, k, *model.model.rotary_emb(x, torch.arange(ids.shape[1])[None]))
    scores = q[:, :, -1:] @ repeat_heads(k, 6).mT / 2
    return scores.softmax(-1)[:, :, 0]


@torch.no_grad()
def test_the_newest_row_is_that_of_scaled_states_and_the_others_are_the_models():
    model, ids = causal("Llama"), tokens(2, 13)
    plain, edit = Trace("z", "v"), PositionalHidden([3, 7], -3.0, layers=[0])
    with regard.attach(model, edits=[plain], probes=[Dense(13)]) as before:
        logits(model, ids)
    with regard.attach(model, edits=[edit, after := Trace("z")], probes=[Dense(13)]) as shown:
        logits(model, ids)
    expected = row_by_hand(model, ids, [3, 7], -3.0)
    torch.testing.assert_close(shown["dense"][0][:, :, -1], expected, **CLOSE)
    torch.testing.assert_close(shown["dense"][0][:, :, :-1], before["dense"][0][:, :, :-1], **CLOSE)
    z = (expected[:, :, None] @ repeat_heads(plain.get("v", 0), 6))[:, :, 0]
    torch.testing.assert_close(after.get("z", 0)[:, :, -1], z, **CLOSE)
    assert torch.equal(after.get("z", 0)[:, :, :-1], plain.get("z", 0)[:, :, :-1])
    assert (expected - before["dense"][0][:, :, -1]).abs().max() > 0.05


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma2", "GptOss", "GPT2"])
def test_every_generated_token_attends_so_in_any_architecture(name):
    """As a pass over the text so far, without a cache, does."""
    model, ids = causal(name), tokens(2, 11)
    usual = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    usual |= {"attention_mask": torch.ones_like(ids), "output_logits": True, "return_dict_in_generate": True}
    edit = PositionalHidden([1, 5], -3.0)
    with regard.steer(model, edit):
        cached, free = model.generate(ids, **usual), model.generate(ids, use_cache=False, **usual)
        chunks = model.generate(ids, prefill_chunk_size=4, **usual)
    plain = model.generate(ids, **usual)
    assert (cached.logits[0] - plain.logits[0]).abs().max() > 1e-3
    # in a pass over the whole, rows that were the newest once are none, so the first token alone is the same
    torch.testing.assert_close(cached.logits[0], free.logits[0], **CLOSE)
    assert cached.sequences.shape == chunks.sequences.shape
    torch.testing.assert_close(model.generate(ids, **usual).logits[0], plain.logits[0])


def test_beams_keep_their_own_keys():
    """Every hypothesis scores what it does when it is read alone under the same edit of all its new rows."""
    model, ids = causal("Llama"), tokens(1, 9)
    edit = PositionalHidden([3, 7], -2.0, rows=slice(8, None))
    with regard.steer(model, edit):
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=4,
            num_return_sequences=4,
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            length_penalty=1.0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        logs = logits(model, out.sequences)[:, 8:-1].log_softmax(-1)
    alone = logs.gather(2, out.sequences[:, 9:, None])[..., 0].mean(1)
    torch.testing.assert_close(out.sequences_scores, alone, **CLOSE)
    assert len({tuple(row) for row in out.sequences.tolist()}) == 4


def test_other_edits_act_on_the_scaled_row_too():
    model, ids = causal("Llama"), tokens(1, 9)
    probes = {}
    for name, edits in {
        "sharp": [PositionalHidden([3], 0.0, layers=[0]), Temperature(0.5), ZeroTuning(3.0)],
        "plain": [PositionalHidden([3], 0.0, layers=[0])],
    }.items():
        with regard.attach(model, edits=edits, probes=[Dense(9)]) as shown:
            logits(model, ids)
        probes[name] = shown["dense"][0][:, :, -1]
    expected = probes["plain"] ** 2
    expected[..., 0] *= 3
    torch.testing.assert_close(probes["sharp"], expected / expected.sum(-1, keepdim=True), **CLOSE)


def test_what_cannot_be_followed_is_refused():
    model, ids = causal("Llama"), tokens(1, 9)
    with pytest.raises(ValueError, match="channels: got"):
        PositionalHidden([-1])
    with regard.steer(model, PositionalHidden([99])), pytest.raises(ValueError, match=r"want some of 0 to 23"):
        logits(model, ids)
    both = PositionalHidden([1], heads=[0, 1]), PositionalHidden([2], heads=[1, 2])
    with regard.steer(model, *both), pytest.raises(ValueError, match="two edits of inputs for the same rows"):
        logits(model, ids)
    with (
        regard.steer(model, PositionalHidden([1])),
        regard.steer(model, PositionalHidden([2])),
        pytest.raises(ValueError, match="two edits of inputs for the same rows"),
    ):
        logits(model, ids)
    with (
        regard.steer(model, PositionalHidden([1]), ACT()),
        pytest.raises(ValueError, match="PositionalHidden beside ACT"),
    ):
        logits(model, ids)
    cache = model(input_ids=ids, use_cache=True).past_key_values
    with regard.steer(model, PositionalHidden([1])), pytest.raises(RuntimeError, match="were not all edited"):
        model(input_ids=ids[:, :1], past_key_values=cache)
    with (
        regard.attach(model, "window(size=4)", edits=[PositionalHidden([1])]),
        pytest.raises(ValueError, match="inputs"),
    ):
        logits(model, ids)


def test_the_search_finds_what_the_authors_code_finds():
    given = torch.tensor(states()[1:])
    assert candidates(given) == VALUES["channels"]
    assert candidates(given, most=2) == VALUES["channels"][:2]
    with pytest.raises(ValueError, match="states: got 300 tokens, want at least 310"):
        candidates(given[:, :300])


class Ramp(Edit):
    """Adds to one channel what grows with the place."""

    parts = ("resid",)

    def __init__(self, channel, size):
        super().__init__(Where([1]))
        self.channel, self.size = channel, size

    def hidden(self, x, place):
        x = x.clone()
        x[..., self.channel] += self.size * place.query_positions / 100
        return x


def test_states_are_means_over_random_texts():
    model, tokenizer = load("tiny")
    texts = random_strings(tokenizer, 2, 61)
    assert texts.shape == (2, 61)
    assert len(texts.unique()) > 20
    plain, ramped = mean_states(model, texts), mean_states(model, texts, Ramp(17, 50.0))
    assert plain.shape == (4, 61, 256)
    with torch.no_grad():
        every = [model(input_ids=text[None], output_hidden_states=True).hidden_states for text in texts]
    torch.testing.assert_close(plain[1], (every[0][2][0] + every[1][2][0]).float() / 2)
    assert torch.equal(ramped[0], plain[0])
    told = torch.stack([(ramped - plain)[1, :, 17], torch.arange(61.0)])
    assert torch.corrcoef(told)[0, 1] > 0.9


def test_the_channel_is_chosen_by_what_it_costs():
    small = causal("Llama")
    examples = [Answered(tokens(1, 7, seed=seed)[0], tokens(1, 2, seed=seed + 9)[0]) for seed in range(3)]
    edit = PositionalHidden([0], -2.0, layers=[0, 1])
    ranked = channels(small, [3, 11, 5], examples, edit, most=3)
    costs = []
    for channel in ranked:
        cost = 0.0
        for one in examples:
            ids = torch.cat([one.prompt, one.answer])[None]
            with regard.steer(small, PositionalHidden([channel], -2.0, layers=[0, 1], rows=slice(6, None))):
                logs = logits(small, ids)[0, 6:-1].log_softmax(-1)
            cost -= logs.gather(1, one.answer[:, None]).mean().item()
        costs.append(cost)
    assert sorted(ranked) == [3, 5, 11]
    assert costs == sorted(costs)


def test_an_edit_without_effect_is_the_model():
    model, ids = causal("Llama"), tokens(1, 9)
    with regard.steer(model, PositionalHidden([3], 1.0), HeadScale([0], 1.0)):
        got = logits(model, ids)
    assert torch.equal(got, logits(model, ids))
