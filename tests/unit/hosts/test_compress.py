"""A model under a policy: in every family, with all else that can be attached, through all that is done to it."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache, StaticCache

import regard
from regard.core.policy import Policy, best, shared_out
from regard.edits.tilt import KnockOut
from regard.hosts.budget import Budget
from regard.policies import SnapKV, Streaming
from regard.policies.named import policy_of
from regard.probes import Entropy
from unit.hosts.models import CAUSAL, ROPE, cache_of, causal, spread, tokens

SNAP = "snapkv(window=3)"
FAMILIES = [name for name in [*CAUSAL, "GPT2"] if name != "Mistral"]


def said(model, ids, **about):
    """What a model says, with its logits."""
    out = model.generate(
        ids, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True, **about
    )
    return torch.stack(out.logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_forgets_and_is_watched_as_it_computes(name):
    """What is left is attended to in the same way by itself and over all slots; a budget for all changes nothing."""
    model, ids = causal(name), tokens(2, 23)
    with regard.attach(model):
        plain = said(model, ids)
    with regard.compress(model, SNAP, 64):
        assert torch.equal(said(model, ids), plain)
    with regard.compress(model, SNAP, 8) as compression:
        less = said(model, ids)
    with regard.attach(model, policy=SNAP, budget=8, probes=[Entropy()]) as attached:
        watched = said(model, ids)
    assert (less - plain).abs().max() > 1e-2
    torch.testing.assert_close(watched, less, atol=1e-5, rtol=1e-5)
    held = compression.store.layers
    assert len(held) == sum(kind != "sliding_attention" for kind in getattr(model.config, "layer_types", "ab"))
    assert all(len(at) == 8 for layer in held for at in compression.store.kept(layer, 1))
    assert attached["entropy"]


def test_the_model_itself_with_a_budget_for_all():
    model, ids = causal("Llama"), tokens(2, 23)
    with regard.compress(model, SNAP, 64):
        same = said(model, ids)
    assert torch.equal(same, said(model, ids))


@settings(max_examples=5, deadline=None)
@given(st.integers(11, 31), st.integers(7, 10), st.integers(1, 3), st.sampled_from(["float32", "float16"]))
def test_shapes_chunks_and_half_precision(length, budget, chunk, dtype):
    """Any cut of what follows the prompt is the same, as long as nothing is evicted in between."""
    model, ids = causal("Qwen3").to(getattr(torch, dtype)), tokens(3, length + 6)
    found = []
    for step in (chunk, 6):
        cache, parts = DynamicCache(config=model.config), []
        with (
            regard.compress(model, "streaming(sinks=2)", budget, every=50, when="decoding") as compression,
            torch.no_grad(),
        ):
            model(ids[:, :length], past_key_values=cache)
            for layer in compression.store.layers.values():
                layer.evict({b: [torch.arange(0, length, 2)] * 3 for b in range(3)})
            for part in ids[:, length:].split(step, 1):
                parts.append(model(part, past_key_values=cache).logits)
        found.append(torch.cat(parts, 1).float())
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    torch.testing.assert_close(found[0], found[1], atol=tolerance * found[0].abs().max().item(), rtol=0)


def test_beams_sampling_and_chunks():
    model, ids = causal("Llama"), tokens(2, 23)
    one = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False}
    plain = model.generate(ids, **one)
    with regard.compress(model, SNAP, 40):
        assert torch.equal(model.generate(ids, **one), plain)
    with regard.compress(model, SNAP, 9) as compression:
        model.generate(ids, **one)
        model.generate(ids, max_new_tokens=6, do_sample=True, prefill_chunk_size=5)
    assert {len(at) for at in compression.store.kept(0)} == {9}


def test_a_chunk_may_be_padding_alone():
    """A left-padded prompt in chunks: the shorter sequence keeps what it keeps alone."""
    model, ids, budget = causal("Llama"), tokens(2, 18), 0.5
    padded, mask = ids.clone(), torch.ones(2, 18, dtype=torch.long)
    padded[1, :7], mask[1, :7] = 0, 0
    for policy in ("task_kv(window=2, sinks=1)", "streaming", "lazy_eviction(every=2)", "quest(page=2, whole=0)"):
        with regard.compress(model, policy, budget, when="decoding") as compression:
            one = {"do_sample": False, "max_new_tokens": 4}
            both = model.generate(padded, attention_mask=mask, prefill_chunk_size=5, **one)[1, 18:]
            kept = [compression.store.kept(layer, 1) for layer in range(2)]
            alone = model.generate(padded[1:, 7:], **one)[0, 11:]
            for layer, heads in enumerate(kept):
                assert all(torch.equal(*pair) for pair in zip(heads, compression.store.kept(layer), strict=True))
        assert torch.equal(both, alone)


def test_edits_see_what_is_left():
    """An edit of keys that are forgotten changes nothing more; one of keys that are held does."""
    model, ids = causal("Llama"), tokens(1, 20)
    found = {}
    for name, spans in {"none": [], "forgotten": [(5, 9)], "held": [(0, 2)]}.items():
        cache, edits = DynamicCache(config=model.config), [KnockOut(spans, rows=slice(17, None))]
        with regard.attach(model, edits=edits, policy="streaming(sinks=2)", budget=7), torch.no_grad():
            model(ids[:, :17], past_key_values=cache)
            found[name] = model(ids[:, 17:], past_key_values=cache).logits
    torch.testing.assert_close(found["forgotten"], found["none"], atol=1e-5, rtol=0)
    assert (found["held"] - found["none"]).abs().max() > 1e-3


def test_layers_with_a_mechanism_keep_its_state():
    model, ids = causal("Llama"), tokens(1, 20)
    with regard.attach(model, {0: "window(size=5)"}, policy=SNAP, budget=8) as attached, torch.no_grad():
        model.generate(ids, max_new_tokens=4, do_sample=False)
        assert list(attached.compression.store.layers) == [1]


def test_a_prompt_is_read_once_for_several_policies():
    model, ids = causal("Llama"), tokens(1, 20)
    cache = DynamicCache(config=model.config)
    with regard.compress(model, SNAP, 64), torch.no_grad():
        model(ids[:, :19], past_key_values=cache)
    found = []
    for _ in range(2):
        fork = copy.deepcopy(cache)
        with regard.compress(model, "streaming", 8) as compression, torch.no_grad():
            compression.take_over(fork)
            compression.evict_from(fork)
            assert {len(layer.held(0, 1).pair[0]) for layer in fork.layers} == {8}
            found.append(model(ids[:, 19:], past_key_values=fork).logits)
            assert compression.store.kept(0)[0].tolist() == [0, 1, 2, 3, 16, 17, 18, 19]
    assert torch.equal(*found)
    with regard.compress(model, "quest(page=2, whole=0)", 8) as compression, torch.no_grad():
        compression.take_over(fork := copy.deepcopy(cache))
        model(ids[:, 19:], past_key_values=fork)
        assert {len(at) for heads in compression.read[1] for at in heads} == {8}
    with regard.compress(model, "h2o", 8) as compression, pytest.raises(ValueError, match="for which mass of tokens"):
        compression.take_over(cache)
    assert cache.layers[0].keys.shape[2] == 19


def test_budgets_in_all_units():
    assert [Budget.of(given) for given in (512, "512")] == [Budget(tokens=512)] * 2
    assert [Budget.of(given) for given in (0.25, "0.25", ".25")] == [Budget(share=0.25)] * 3
    assert Budget.of("1.5KiB") == Budget(bytes=1536)
    assert Budget(share=0.25).size(22, 1, 1) == 6
    texts = ("512", "0.25", "3MiB", "1536B", "2KiB", "1GiB")
    assert [str(Budget.of(text)) for text in texts] == list(texts)
    for wrong in (0, -1, 1.5, "many", "3 cats", "0"):
        with pytest.raises(ValueError, match=r"^budget: got .*, want tokens of a kv head"):
            Budget.of(wrong)
    with pytest.raises(TypeError, match="budget"):
        Budget.of(True)
    model, ids = causal("Llama"), tokens(2, 23)
    with regard.compress(model, "streaming", "6KiB") as compression, torch.no_grad():
        cache = cache_of(model(ids))
        assert cache.get_seq_length() == 23
        table = compression.store.table(1)
        assert table.shape == (2, 3, 23)
        assert table.sum(2).tolist() == [[len(at) for at in compression.store.kept(layer, 1)] for layer in (0, 1)]
        assert table[1, 0].nonzero()[:, 0].tolist() == compression.store.kept(1, 1)[0].tolist()
        for _ in range(3):
            assert 6144 * 0.85 < compression.store.bytes <= 6144 + 2 * 2 * 4  # with the room for what comes next
            cache = cache_of(model(ids[:, :1], past_key_values=cache))
    with (
        regard.compress(model, "streaming", "3B"),
        pytest.raises(ValueError, match="budget: got 3 bytes, want at least"),
    ):
        model(ids)


class Nan(Policy):
    def scores(self, view):
        return torch.full((view.size,), torch.nan)


class Short(Policy):
    def scores(self, view):
        return torch.zeros(view.size - 1)


class TooMany(Streaming):
    def allot(self, views, scores, budget):
        return [budget + 1] * len(views)


@pytest.mark.parametrize(
    ("policy", "match"),
    [(Nan(), r"^scores: .*NaN"), (Short(), r"^scores: got shape \(22,\)"), (TooMany(), r"^allot: got \[9,")],
)
def test_a_policy_that_errs_is_named(policy, match):
    model = causal("Llama")
    with regard.compress(model, policy, 8), pytest.raises(ValueError, match=match):
        model(tokens(1, 23))


def test_what_cannot_forget_is_refused():
    model, ids = causal("Llama"), tokens(1, 23)
    with regard.compress(model, SNAP, 8), torch.no_grad():
        with pytest.raises(RuntimeError, match="without a growing cache"):
            model(ids, use_cache=False)
        with pytest.raises(ValueError, match="kind StaticLayer, want a DynamicCache"):
            model(ids, past_key_values=StaticCache(config=model.config, max_cache_len=40))
        with pytest.raises((ValueError, RuntimeError), match=r"cache that can be cropped|crop: got \d+ tokens"):
            model.generate(ids, max_new_tokens=6, prompt_lookup_num_tokens=3)
        with pytest.raises(RuntimeError, match="compressed already"), regard.compress(model, SNAP):
            pass
        cache = cache_of(model(ids))
        other = causal("Llama")
        with regard.compress(other, SNAP, 8), pytest.raises(RuntimeError, match="another compression filled"):
            other(ids[:, :1], past_key_values=copy.deepcopy(cache))
        with pytest.raises(RuntimeError, match="crop: got 2 tokens"):
            cache.layers[0].crop(-2)
    with pytest.raises(RuntimeError, match="a cache of a compression that is out again"):
        model(ids[:, :1], past_key_values=cache)
    with regard.compress(model, SNAP, 2), pytest.raises(ValueError, match="want at least the 3 that are always kept"):
        model(ids)
    with pytest.raises(ValueError, match="no layer keeps all of the past"):
        regard.compress(causal("Mistral"), SNAP)
    with pytest.raises(ValueError, match="read the cache of others"):
        regard.compress(shared(), SNAP)
    with pytest.raises(ValueError, match="when: got 'never'"):
        regard.compress(model, SNAP, when="never")


def shared():
    torch.manual_seed(3)
    sizes = ROPE | {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "vocab_size_per_layer_input": 29}
    sizes |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "activation_sparsity_pattern": [0.0] * 4}
    more = {"hidden_size_per_layer_input": 8, "laurel_rank": 4, "altup_num_inputs": 2, "sliding_window": 7}
    return spread(transformers.Gemma3nForCausalLM(transformers.Gemma3nTextConfig(**sizes | more)))


def bart():
    torch.manual_seed(3)
    sizes = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 3, "vocab_size": 29}
    more = {"decoder_attention_heads": 3, "encoder_ffn_dim": 31, "decoder_ffn_dim": 31, "max_position_embeddings": 64}
    return spread(transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **more)))


def test_decoders_with_an_encoder_forget_their_own_past():
    model, ids = bart(), tokens(1, 9)
    start = torch.randint(3, 29, (1, 15), generator=torch.Generator().manual_seed(0))
    with regard.compress(model, "streaming", 6) as compression, torch.no_grad():
        out = model(input_ids=ids, decoder_input_ids=start)
        assert [len(at) for at in compression.store.kept(0)] == [6, 6, 6]
        model(
            encoder_outputs=out.encoder_last_hidden_state[None],
            decoder_input_ids=start[:, :1],
            past_key_values=cache_of(out),
        )


def test_names_and_arguments():
    assert policy_of("snapkv(window=16)", sinks=4) == SnapKV(window=16, sinks=4)
    assert policy_of(SnapKV(), kernel=7) == SnapKV(kernel=7)
    assert policy_of("streaming_llm") == Streaming()
    with pytest.raises(LookupError, match=r"did you mean 'snapkv'"):
        policy_of("snapvk")
    with pytest.raises(TypeError, match=r"^windw: got an unknown argument.*did you mean 'window'"):
        policy_of(SnapKV(), windw=3)
    with pytest.raises(TypeError, match="windw"):
        policy_of("snapkv(windw=3)")
    with pytest.raises(TypeError, match="policy: got 3"):
        policy_of(3)
    with pytest.raises(ValueError, match="window, kernel"):
        SnapKV(kernel=4)
    with pytest.raises(ValueError, match="sinks, recent, every"):
        Streaming(every=0)


def test_the_best_and_the_shares():
    assert best(torch.tensor([1.0, 3, 3, 2]), 2).tolist() == [1, 2]
    assert best(torch.tensor([1.0, 1, 1]), 2).tolist() == [1, 2]
    assert shared_out(10, [1, 1, 1]) == [4, 3, 3]
    assert sum(shared_out(97, [0.3, 0.5, 1.7, 2])) == 97


@pytest.mark.parametrize("name", ["Llama", "GptOss"])
@pytest.mark.parametrize("policy", ["quest(page=3, whole=0)", "delta_reader(page=2, last=1, chosen=[0.0])", "hylra"])
def test_readers_keep_everything_and_are_watched_as_they_read(name, policy):
    model, ids = causal(name), tokens(2, 23)
    with regard.attach(model):
        plain = said(model, ids)
    with regard.compress(model, policy, 8) as compression:
        less = said(model, ids)
        assert all(len(at) == 27 for layer in compression.store.layers for at in compression.store.kept(layer, 1))
    with regard.attach(model, policy=policy, budget=8, probes=[Entropy()]):
        torch.testing.assert_close(said(model, ids), less, atol=1e-5, rtol=1e-5)
    assert torch.equal(less[0], plain[0])
    several = len(compression.store.layers) > 1 or "quest" in policy
    assert ((less[1:] - plain[1:]).abs().max() > 1e-3) == several
    with regard.compress(model, policy, 64):
        assert torch.equal(said(model, ids), plain)
