"""Caches in codes: what is left of keys and values, the bytes that are told, and budgets that codes do not fit."""

import copy
import math

import pytest
import torch
from transformers.cache_utils import DynamicCache

import regard
from regard.codecs import Integers, PyramidVector
from regard.policies import Coded
from unit.hosts.models import causal, tokens


@torch.no_grad()
def read(model, ids, session, **about):
    cache = DynamicCache(config=model.config)
    with session:
        out = model(input_ids=ids, past_key_values=cache, **about)
    return cache, out.logits


@torch.no_grad()
def test_what_is_over_the_budget_is_what_the_codec_leaves_of_it():
    """All but two sinks and three recent tokens, by hand; the pass itself is the model's own, the next one is not."""
    model, ids = causal("Llama"), tokens(2, 11)
    plain, want = read(model, ids, torch.no_grad())
    codec = Integers(width=4)
    policy = Coded(codec=codec, sinks=2, recent=3)
    session = regard.compress(model, policy, 8)
    cache, logits = read(model, ids, session)
    assert torch.equal(logits, want)
    for ours, own in zip(cache.layers, plain.layers, strict=True):
        for one, other in ((ours.keys, own.keys), (ours.values, own.values)):
            expected = other.clone()
            expected[:, :, 2:8] = codec.through(other[:, :, 2:8])
            assert torch.equal(one, expected)
            assert (expected - other).abs().max() > 1e-3
    entry = 2 * 4 * 4
    coded = 2 * (4 * math.log2(15) + 15) / 8  # of 4 numbers, and a scale without a sign
    assert session.store.pairs == round(2 * 2 * 3 * (5 * entry + 6 * coded))
    with session:
        later = model(input_ids=ids[:, :1], past_key_values=cache).logits
    assert (later - model(input_ids=ids[:, :1], past_key_values=plain).logits).abs().max() > 1e-5
    assert cache.layers[0].coded == [7, 7]


@torch.no_grad()
def test_with_room_for_all_nothing_is_coded():
    model, ids = causal("Llama"), tokens(2, 11)
    plain, _ = read(model, ids, torch.no_grad())
    session = regard.compress(model, "coded(codec=integers(width=2))", 11)
    cache, _ = read(model, ids, session)
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(cache.layers, plain.layers, strict=True))
    assert session.store.pairs == 2 * 2 * 3 * 11 * 2 * 4 * 4


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_coded_and_rows_are_what_they_are_alone(side):
    model, ids = causal("Llama"), tokens(1, 9)
    mask = torch.ones(2, 13, dtype=torch.long)
    padded = tokens(2, 13)
    there = slice(4, 13) if side == "left" else slice(0, 9)
    padded[1, there], mask[1] = ids[0], 0
    mask[1, there] = 1
    policy = Coded(codec=PyramidVector(group=4, pulses=5), recent=1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    both, _ = read(model, padded, regard.compress(model, policy, 0.6), attention_mask=mask, position_ids=places)
    alone, _ = read(model, ids, regard.compress(model, policy, 0.6))
    for one, other in zip(both.layers, alone.layers, strict=True):
        torch.testing.assert_close(one.keys[1:, :, there], other.keys, atol=1e-3, rtol=0)
        assert one.coded == [12, 8]
    both.reorder_cache(torch.tensor([1, 1, 0]))
    assert both.layers[0].coded == [8, 8, 12]


@torch.no_grad()
def test_a_fork_is_coded_by_itself_and_tokens_once():
    model, ids = causal("Llama"), tokens(1, 12)
    cache, _ = read(model, ids, regard.compress(model, "full", 1.0))
    before, forks = cache.layers[1].values.clone(), {}
    for text in ("coded(codec=integers(width=8))", "coded(codec=integers(width=4))"):
        fork = copy.deepcopy(cache)
        with regard.compress(model, text, 0.8, when="decoding") as session:
            session.take_over(fork)
            session.evict_from(fork)
            once = fork.layers[1].values.clone()
            model(input_ids=ids[:, :1], past_key_values=fork)
        assert torch.equal(fork.layers[1].values[:, :, :12], once)
        forks[text] = (once - before).abs().max()
    assert torch.equal(cache.layers[1].values, before)
    few, many = sorted(forks.values())
    assert 0 < few < 0.2 * many


def test_codes_that_do_not_fit_and_codecs_that_are_none_are_refused():
    model = causal("Llama")
    with pytest.raises(ValueError, match=r"budget: got 3 tokens a head, of 11 with 61 bits each, whole ones have 256"):
        read(model, tokens(1, 11), regard.compress(model, "coded(codec=integers(width=4), recent=1)", 3))
    cache, _ = read(model, tokens(1, 11), regard.compress(model, "knorm", 5))
    with regard.compress(model, "coded", 5) as session:
        session.take_over(cache)
        with pytest.raises(ValueError, match="cache: got one that has forgotten"):
            session.evict_from(cache)
    with pytest.raises(LookupError, match="codec: got 'integer"):
        regard.compress(model, "coded(codec=integer)", 3)
