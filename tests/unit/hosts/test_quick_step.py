"""The short way of a step computes what the long one does, is left where more is wanted, and keeps the books as it."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.cache_utils import DynamicCache
from transformers.integrations import sdpa_attention

import regard
from regard.edits import HeadAblation
from regard.hosts import caches
from regard.hosts.quick_step import QuickStep
from regard.probes import Entropy
from unit.hosts.models import causal, tokens

PROMPT, STEPS = 9, 5
LONG, KEPT = 70, 64
"""Tokens of a prompt, and of them those that are kept: enough that there is room for several more behind them."""


@pytest.fixture
def taken(monkeypatch):
    """How many steps took the short way."""
    count, plain = [0], QuickStep.__call__

    def counted(self, *args, **kwargs):
        out = plain(self, *args, **kwargs)
        count[0] += out is not None
        return out

    monkeypatch.setattr(QuickStep, "__call__", counted)
    return count


def decoded(model, ids, cache, mask=None):
    """The logits of a prompt, and of single tokens after it."""
    found = []
    with torch.no_grad():
        for start, stop in [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, PROMPT + STEPS))]:
            about = {}
            if mask is not None:
                places = (mask.cumsum(1) - 1).clamp(min=0)
                about = {"attention_mask": mask[:, :stop], "position_ids": places[:, start:stop]}
            found.append(model(input_ids=ids[:, start:stop], **caches.given(model, cache), **about).logits)
    return torch.cat(found, 1)


def plain(ids, mask=None):
    """The same of a model that nothing is done to."""
    model = causal("Llama")
    return decoded(model, ids, DynamicCache(config=model.config), mask)


@pytest.mark.parametrize("policy", ["full", "streaming(sinks=1)", "snapkv(window=3)", "pyramidkv(window=2)"])
def test_steps_are_the_models_own_bit_by_bit(policy, taken):
    model, ids = causal("Llama"), tokens(2, PROMPT + STEPS)
    with regard.compress(model, policy, PROMPT + STEPS) as session:
        got = decoded(model, ids, DynamicCache(config=model.config))
        assert [store.lengths() for store in session.store.layers.values()] == [[PROMPT + STEPS] * 2] * 2
    assert torch.equal(got, plain(ids))
    assert taken[0] >= 2 * (STEPS - 2)


@pytest.mark.parametrize("policy", ["streaming(sinks=1)", "snapkv(window=3)"])
def test_evictions_come_when_they_would(policy, taken, monkeypatch):
    """Two tokens of room: the short way until there is none, and the same is kept as by the long one."""
    ids, kept = tokens(1, PROMPT + STEPS), []
    for able in (True, False):
        model = causal("Llama")
        with regard.compress(model, policy, PROMPT + 2) as session:
            session.quick.able = able
            logits = decoded(model, ids, DynamicCache(config=model.config))
            kept.append((logits, [[at.tolist() for at in session.store.kept(layer)] for layer in (0, 1)]))
    assert taken[0] > 0
    assert torch.equal(kept[0][0], kept[1][0])
    assert kept[0][1] == kept[1][1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("copied", [False, True])
def test_steps_of_heads_that_forgot_are_short_too(dtype, copied, taken):
    """Evictions every third step: the short way between them, with what it owes, and the same kept as by the long one.

    A copy of the cache in the middle of it goes on by itself.
    """
    ids, kept = tokens(2, LONG + STEPS), []
    other = ids.roll(1, 1)
    for able in (True, False):
        model = causal("Llama").to(dtype)
        cache, found = DynamicCache(config=model.config), []
        with torch.no_grad(), regard.compress(model, "snapkv(window=2, every=3)", KEPT) as session:
            session.quick.able = able
            model(input_ids=ids[:, :LONG], **caches.given(model, cache))
            for at in range(LONG, LONG + STEPS):
                if copied and at == LONG + 2:
                    fork = copy.deepcopy(cache)
                    found.append(model(input_ids=other[:, at : at + 1], **caches.given(model, fork)).logits)
                found.append(model(input_ids=ids[:, at : at + 1], **caches.given(model, cache)).logits)
            found.append([[at.tolist() for at in session.store.kept(layer)] for layer in (0, 1)])
        kept.append(found)
    assert taken[0] >= 2 * STEPS
    assert kept[0][-1] == kept[1][-1]
    assert all(torch.equal(*pair) for pair in zip(kept[0][:-1], kept[1][:-1], strict=True))


def test_beams_that_go_on_from_one_cache_do_not_write_over_each_other(taken):
    ids = tokens(1, LONG + STEPS)
    rows = torch.cat([ids, ids.roll(1, 1)])
    found = []
    for able in (True, False):
        model = causal("Llama")
        cache = DynamicCache(config=model.config)
        with torch.no_grad(), regard.compress(model, "streaming(sinks=1, every=3)", KEPT) as session:
            session.quick.able = able
            model(input_ids=ids[:, :LONG], **caches.given(model, cache))
            cache.batch_repeat_interleave(2)
            for at in range(LONG, LONG + STEPS):
                found.append(model(input_ids=rows[:, at : at + 1], **caches.given(model, cache)).logits)
    assert taken[0] > 0
    half = len(found) // 2
    assert all(torch.equal(*pair) for pair in zip(found[:half], found[half:], strict=True))


@pytest.mark.parametrize("beams", [1, 3])
def test_stock_generation_takes_it_where_nothing_is_padding(taken, beams):
    ids, padded = tokens(2, PROMPT), torch.ones(2, PROMPT, dtype=torch.int64)
    padded[1, :3] = 0
    for mask, short in ((torch.ones_like(padded), True), (padded, False)):
        model, found, taken[0] = causal("Llama"), [], 0
        about = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "num_beams": beams}
        with regard.compress(model, "full", 99):
            found.append(model.generate(input_ids=ids, **about))
        found.append(model.generate(input_ids=ids, **about))
        assert torch.equal(*found)
        assert bool(taken[0]) == short


def test_what_else_is_attached_is_not_passed_by(taken):
    model, ids = causal("Llama"), tokens(1, PROMPT + STEPS)
    with regard.compress(model, "full", 99), regard.watch(model, [Entropy()]) as watched:
        decoded(model, ids, DynamicCache(config=model.config))
    assert watched["entropy"]
    edit = HeadAblation({0: [1]})
    edited = causal("Llama")
    with regard.steer(edited, edit):
        want = decoded(edited, ids, DynamicCache(config=edited.config))
    with regard.compress(model, "full", 99), regard.steer(model, edit):
        got = decoded(model, ids, DynamicCache(config=model.config))
    assert taken[0] == 0
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_padding_and_policies_that_note_take_the_long_way(taken):
    model, ids = causal("Llama"), tokens(2, PROMPT + STEPS)
    mask = torch.ones(2, PROMPT + STEPS, dtype=torch.int64)
    mask[1, :3] = 0
    with regard.compress(model, "full", 99):
        got = decoded(model, ids, DynamicCache(config=model.config), mask)
    torch.testing.assert_close(got[0], plain(ids, mask)[0], atol=1e-5, rtol=1e-4)
    cache, places = DynamicCache(config=model.config), (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), regard.compress(model, "full", 99) as session:  # whose padding is told with the prompt alone
        told = {"attention_mask": mask[:, :PROMPT], "position_ids": places[:, :PROMPT]}
        model(input_ids=ids[:, :PROMPT], **caches.given(model, cache), **told)
        for at in range(PROMPT, PROMPT + STEPS):
            model(input_ids=ids[:, at : at + 1], **caches.given(model, cache), position_ids=places[:, at : at + 1])
        assert session.store.layers[0].lengths() == mask.sum(1).tolist()
    with regard.compress(model, "h2o", 99):
        decoded(model, ids, DynamicCache(config=model.config))
    assert taken[0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_a_padded_batch_is_the_models_own_bit_by_bit(family, dtype):
    """Room for all, the first sequence begins with padding: what is generated, and every logit of it.

    Where Transformers repeats keys for the heads that share them, sums of single precision may differ in the last bit.
    """
    model, ids = causal(family).to(dtype), tokens(2, PROMPT)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    about = {"attention_mask": mask, "max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}
    want = model.generate(ids, **about, output_scores=True, return_dict_in_generate=True)
    with regard.compress(model, "full", 99):
        got = model.generate(ids, **about, output_scores=True, return_dict_in_generate=True)
    assert torch.equal(got.sequences, want.sequences)
    rough = 0 if hasattr(sdpa_attention, "pack_gqa") else 1e-6
    for mine, theirs in zip(got.scores, want.scores, strict=True):
        torch.testing.assert_close(mine, theirs, atol=rough, rtol=rough)


def test_caches_in_turn_are_kept_apart_and_the_model_is_as_before(taken):
    model, texts = causal("Llama"), [tokens(1, PROMPT + STEPS, seed=seed) for seed in (1, 2)]
    kept = [DynamicCache(config=model.config) for _ in texts]
    found = [[], []]
    with torch.no_grad(), regard.compress(model, "full", 99) as session:
        for start, stop in [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, PROMPT + STEPS))]:
            for ids, cache, out in zip(texts, kept, found, strict=True):
                out.append(model(input_ids=ids[:, start:stop], **caches.given(model, cache)).logits)
                assert session.cache is cache
    for ids, out in zip(texts, found, strict=True):
        assert torch.equal(torch.cat(out, 1), plain(ids))
    names = dict(model.config.__dict__).get("_attn_implementation_internal", model.config._attn_implementation)
    assert "regard" not in str(names)
    assert torch.equal(decoded(model, texts[0], DynamicCache(config=model.config)), plain(texts[0]))
