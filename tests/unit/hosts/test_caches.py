"""Caches are known by their type: positions, sequences and tokens follow from them, whatever is done to them."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache, EncoderDecoderCache, StaticCache

from regard.hosts import caches
from regard.hosts.cache_history import History, rows_of
from regard.hosts.slots import Handed, Slots, slots_of
from regard.hosts.watch import watch
from regard.probes import DuplicateToken, Entropy, Induction, Received
from unit.hosts.models import causal, eager, tokens
from unit.hosts.test_watch import CLOSE, Dense, assert_maps


class Seen:
    """A probe that notes the tokens, slots and sequence of every tile of the first layer."""

    name = "seen"

    def __init__(self) -> None:
        self.tiles = []

    def update(self, tile) -> None:
        if tile.layer == 0:
            self.tiles.append(tile)

    def merge(self, other) -> None:
        raise NotImplementedError

    def result(self):
        return self.tiles


def test_a_cache_is_known_by_its_type_wherever_it_comes():
    cache = DynamicCache()
    both = EncoderDecoderCache(cache, DynamicCache())
    padding_cache = transformers.models.mimi.modeling_mimi.MimiConv1dPaddingCache
    assert caches.is_cache(cache)
    assert caches.is_cache(both)
    assert not any(caches.is_cache(other) for other in (None, (cache,), torch.zeros(1), padding_cache, object()))
    assert list(caches.found([1, {"deep": {"er": cache}}, both, "cache"])) == [cache, both]
    assert caches.own(both) is cache
    assert caches.length(cache) == 0


class Named(torch.nn.Module):
    """Gives a model its cache under any name, as a decoder of its own."""

    def forward(self, past_key_values=None, **kwargs): ...


def test_modules_that_are_given_the_past_are_known_by_their_parameters():
    layer = causal("Llama").model.layers[0]
    assert caches.takes(layer)
    assert caches.takes(layer.self_attn)
    assert caches.takes(Named())
    assert not caches.takes(layer.mlp)
    assert not caches.takes(layer.mlp.gate_proj)
    assert not caches.may_take(layer.mlp.gate_proj)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["growing", "sliding", "fixed", "fixed and sliding"]),
    window=st.integers(2, 6),
    parts=st.lists(st.integers(1, 5), min_size=1, max_size=5),
)
def test_slots_are_those_in_which_a_cache_holds_the_keys(kind, window, parts):
    most, sliding = sum(parts), "sliding" in kind
    config = causal("Llama").config
    if sliding:
        config = copy.deepcopy(config)
        config.sliding_window, config.layer_types = window, ["sliding_attention"] * config.num_hidden_layers
    cache = DynamicCache(config=config) if "fixed" not in kind else StaticCache(config=config, max_cache_len=most)
    total = 0
    for part in parts:
        handed = Handed(cache, int(cache.get_seq_length()), True, part)
        assert handed.past == total
        slots = torch.arange(total + 1, total + part + 1, dtype=torch.float32)  # one more, as empty slots hold zeros
        held = cache.update(slots.view(1, 1, -1, 1), slots.view(1, 1, -1, 1), 0)[0].flatten()
        found = slots_of(part, len(held), handed, 0)
        assert found is not None
        assert found.query == total
        filled = held[: total + part - found.key]
        torch.testing.assert_close(filled - 1, torch.arange(found.key, total + part, dtype=torch.float32))
        total += part


def test_slots_without_a_cache_or_of_the_last_queries_alone():
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 11, 1), torch.zeros(1, 1, 11, 1), 0)
    assert slots_of(7, 7, Handed(), None) == Slots(0)
    assert slots_of(1, 11, Handed(cache, 0, True, 11), 0) == Slots(10)
    assert slots_of(7, 5, Handed(), None) is None
    assert slots_of(1, 13, Handed(cache, 5, True, 1), 0) is None


class Liar(DynamicCache):
    """A cache that takes itself for longer than it is."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx) + 3 * bool(self.layers and self.layers[0].is_initialized)


def test_a_cache_that_disagrees_with_the_call_is_refused():
    model, ids = causal("Llama"), tokens(1, 9)
    cache = Liar(config=model.config)
    with watch(model, [Entropy()]), torch.no_grad():
        model(input_ids=ids, past_key_values=cache)
        with pytest.raises(RuntimeError, match=r"past_key_values: got 10 keys for 1 queries .* after 12 tokens"):
            model(input_ids=ids[:, :1], past_key_values=cache, attention_mask=torch.ones(1, 1, 1, 10))


def test_caches_that_go_on_in_turn_keep_their_own_tokens():
    model, results = causal("Llama"), []
    texts = [tokens(2, 8, seed=seed).repeat(1, 2) for seed in (0, 1)]
    with torch.no_grad(), watch(model, [Induction(), DuplicateToken()]) as whole:
        for text in texts:
            model(input_ids=text, use_cache=False)
    for turns in ([0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]):
        held, done = [DynamicCache(config=model.config) for _ in texts], [0, 0]
        with torch.no_grad(), watch(model, [Induction(), DuplicateToken(), Seen()]) as session:
            for turn in turns:
                start, done[turn] = done[turn], 11 if done[turn] == 0 else 16
                model(input_ids=texts[turn][:, start : done[turn]], past_key_values=held[turn])
        results.append(session)
        assert [tile.sequence for tile in session["seen"]] == turns
    for session in results:
        for name in ("induction", "duplicate_token"):
            for layer, found in session[name].items():
                torch.testing.assert_close(found.value, whole[name][layer].value, **CLOSE)


def test_a_cache_that_the_model_makes_and_returns_goes_on():
    model, ids = causal("Llama"), tokens(2, 9)
    with torch.no_grad(), watch(model, [Dense(9), Seen()]) as session:
        held = model(input_ids=ids[:, :6], use_cache=True).past_key_values
        model(input_ids=ids[:, 6:], past_key_values=held)
    assert_maps(session["dense"], eager(model, input_ids=ids).attentions)
    assert torch.equal(session["seen"][-1].tokens.ids, ids)
    assert {tile.sequence for tile in session["seen"]} == {0}


@pytest.mark.parametrize("cache", [None, "static"])
def test_beam_search_is_followed_token_by_token(monkeypatch, cache):
    model, ids, given_ids = causal("Llama"), tokens(2, 7), []
    prepare = model.prepare_inputs_for_generation

    def noted(input_ids, *args, **kwargs):
        given_ids.append(input_ids)
        return prepare(input_ids, *args, **kwargs)

    monkeypatch.setattr(model, "prepare_inputs_for_generation", noted)
    settings = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    with watch(model, [Seen()]) as session:
        model.generate(ids, cache_implementation=cache, **settings)
    tiles = session["seen"]
    assert len(tiles) == len(given_ids) > 4
    for tile, full in zip(tiles, given_ids, strict=True):
        assert torch.equal(tile.tokens.ids, full)
    exchanged = [not torch.equal(full[:, :-1], before) for before, full in pairwise(given_ids)]
    assert [b.sequence - a.sequence for a, b in pairwise(tiles)] == [int(x) for x in exchanged]
    assert any(exchanged)
    with watch(model, [Received()]), pytest.raises(ValueError, match="want one sequence"):
        model.generate(ids, **settings)


def test_tokens_that_are_taken_back_and_rows_that_are_picked_are_followed():
    model, ids, more = causal("Llama"), tokens(3, 9), tokens(3, 4, seed=5)
    with torch.no_grad(), watch(model, [Seen()]) as session:
        cache = DynamicCache(config=model.config)
        model(input_ids=ids, past_key_values=cache)
        cache.crop(-2)
        model(input_ids=more[:, :1], past_key_values=cache)
        cache.batch_select_indices(torch.tensor([2, 0]))
        model(input_ids=more[[2, 0], 1:2], past_key_values=cache)
        cache.batch_repeat_interleave(2)
        model(input_ids=more[[2, 2, 0, 0], 2:3], past_key_values=cache)
    cropped, picked, repeated = (tile.tokens.ids for tile in session["seen"][1:])
    expected = torch.cat([ids[:, :7], more], 1)
    assert torch.equal(cropped, expected[:, :8])
    assert torch.equal(picked, expected[[2, 0], :9])
    assert torch.equal(repeated, expected[[2, 2, 0, 0], :10])
    assert [tile.sequence for tile in session["seen"]] == [0, 0, 1, 2]


def test_what_became_of_a_cache_that_nobody_knows_is_another_sequence():
    before, cache, history = torch.randn(3, 2, 5, 4), DynamicCache(), History()
    assert rows_of(before, torch.randn(3, 2, 5, 4)) is None
    assert rows_of(before, before[[2, 0, 2]]).tolist() == [2, 0, 2]
    cache.update(before, before, 0)
    known = history.of(cache, 0)
    history.put(cache, known)
    assert history.of(cache, 5).sequence == known.sequence
    cache.layers[0].keys = torch.randn(3, 2, 5, 4)
    assert history.of(cache, 5).sequence == known.sequence + 1
    assert history.of(DynamicCache(), 5).sequence == known.sequence + 2


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["Llama", "GptOss"])
def test_checkpointing_shows_each_row_once(name, reentrant):
    model, ids = causal(name), tokens(2, 11)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    found = []
    for checkpointing in (False, True):
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        with watch(model, [Entropy(), Induction(), Seen()]) as session:
            model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss.backward()
        gradient = model.model.layers[0].self_attn.q_proj.weight.grad.clone()
        found.append((gradient, session["entropy"][0].value, len(session["seen"])))
    (one, other) = found
    assert one[2] == other[2] == 1
    torch.testing.assert_close(one[0], other[0], **CLOSE)
    torch.testing.assert_close(one[1], other[1], **CLOSE)


def test_embeddings_that_are_given_the_past_mix_no_tokens():
    """SpeechT5's decoder numbers its tokens by it; a layer that is given it may attend."""
    config = transformers.SpeechT5Config(
        vocab_size=61, hidden_size=24, encoder_layers=1, decoder_layers=1, encoder_attention_heads=3,
        decoder_attention_heads=3, encoder_ffn_dim=40, decoder_ffn_dim=40, conv_dim=[24], conv_stride=[5],
        conv_kernel=[10], num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    model = transformers.SpeechT5ForSpeechToText(config).eval()
    decoder = model.speecht5.decoder
    assert caches.embeds(decoder.prenet)
    assert not caches.embeds(decoder.wrapped_decoder.layers[0])
    with torch.no_grad(), watch(model, [Entropy()]) as seen:
        model(input_values=torch.randn(2, 400), decoder_input_ids=tokens(2, 7))
    assert len(seen["entropy"]) == 3  # the encoder's, the decoder's own and that to the encoder
