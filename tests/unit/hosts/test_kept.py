"""A swapped cache holds the mechanism's state through all that is done to a cache, and is refused where it cannot."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicCache

import regard
from regard.hosts.state_cache import StateCacheLayer
from unit.hosts.models import ROPE, bert, causal, eager, spread, tokens
from unit.hosts.test_swap import CLOSE, logits, mistral_of

DIFFERENTIAL = {key: value for key, value in ROPE.items() if key != "head_dim"} | {
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
SHARED = {
    "vocab_size": 29, "hidden_size": 24, "num_hidden_layers": 6, "num_attention_heads": 4, "attention_head_dim": 12,
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "mamba", "hybrid"], "num_mem_blocks": 1,
    "mamba_d_state": 5, "mamba_expand": 2, "n_mamba_heads": 4, "mamba_headdim": 12, "intermediate_size": 31,
    "mamba_ngroups": 1, "adapter_rank": 3, "use_shared_attention_adapter": False, "chunk_size": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def differential() -> transformers.PreTrainedModel:
    """A model whose attention modules call the interface twice over one cache."""
    torch.manual_seed(3)
    return spread(transformers.DiffLlamaForCausalLM(transformers.DiffLlamaConfig(**DIFFERENTIAL)))


def shared() -> transformers.PreTrainedModel:
    """A model that runs one attention module several times, each time with a cache of its own."""
    torch.manual_seed(3)
    return spread(transformers.Zamba2ForCausalLM(transformers.Zamba2Config(**SHARED)))


@pytest.mark.parametrize("made", [differential, shared, lambda: causal("Llama")])
@pytest.mark.parametrize("padded", [False, True])
def test_every_call_goes_on_from_a_state_of_its_own(made, padded):
    model, ids = made(), tokens(2, 11)
    mask = torch.ones_like(ids)
    mask[1, : 4 * padded] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "attention_mask": mask}
    expected = model.generate(ids, **options)
    with regard.swap(model, "softmax"):
        got = model.generate(ids, return_dict_in_generate=True, **options)
    assert torch.equal(got.sequences, expected)
    kept = [layer for layer in got.past_key_values.layers if isinstance(layer, StateCacheLayer)]
    assert len(kept) == (0 if made is shared else 2)  # its layers hold a recurrence's state beside the keys
    assert len({call for layer in kept for call in layer.held}) == sum(len(layer.held) for layer in kept)


@pytest.mark.parametrize("scaling", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("mechanism", ["softmax", "window(size=19)", "Window(19)"])
def test_the_models_scaling_is_kept(scaling, mechanism):
    torch.manual_seed(3)
    model = spread(transformers.GraniteForCausalLM(transformers.GraniteConfig(**ROPE, attention_multiplier=scaling)))
    ids, options = tokens(2, 13), {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    expected, generated = logits(model, ids), model.generate(ids, **options)
    with regard.swap(model, mechanism):
        torch.testing.assert_close(logits(model, ids), expected, **CLOSE)
        assert torch.equal(model.generate(ids, **options), generated)


@torch.no_grad()
@pytest.mark.parametrize("mechanism", ["window(size=5)", "softmax", "Window(3) | Sinks(2)"])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_tokens_of_the_latest_pass_are_taken_back(mechanism, count):
    model, ids, other = causal("Llama"), tokens(2, 16), tokens(2, 4, seed=7)
    mask = torch.ones_like(ids)
    mask[1, 11:13] = 0
    with regard.swap(model, mechanism):
        cache = DynamicCache(config=model.config)
        model(input_ids=ids[:, :11], past_key_values=cache)
        places = (mask.cumsum(1) - 1)[:, 11:]
        model(input_ids=ids[:, 11:], attention_mask=mask, position_ids=places, past_key_values=cache)
        cache.crop(-count)
        kept = mask[:, : 16 - count]
        more = torch.cat([kept, torch.ones_like(other)], 1)
        places = (more.cumsum(1) - 1)[:, -4:]
        got = model(input_ids=other, attention_mask=more, position_ids=places, past_key_values=cache).logits
        whole = torch.cat([ids[:, : 16 - count], other], 1)
        places = (more.cumsum(1) - 1).clamp(min=0)
        expected = logits(model, whole, attention_mask=more, position_ids=places)[:, -4:]
        torch.testing.assert_close(got, expected, **CLOSE)
        with pytest.raises(RuntimeError, match="crop: got 5 tokens to take back from a swapped layer"):
            cache.crop(-5)


@pytest.mark.parametrize("mechanism", ["softmax", "window(size=4)"])
def test_prompt_lookup_decoding_goes_on_from_the_state(mechanism):
    model, ids = causal("Llama"), tokens(1, 6).repeat(1, 3)
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    with regard.swap(model, mechanism):
        plain = model.generate(ids, **options)
        assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **options), plain)


@torch.no_grad()
def test_a_cache_filled_before_the_swap_goes_on_over_all_of_its_keys():
    model, ids = causal("Llama"), tokens(2, 17)
    begun = model(input_ids=ids[:, :11], use_cache=True).past_key_values
    other = DynamicCache()
    for index, layer in enumerate(begun.layers):
        other.update(layer.keys.clone(), layer.values.clone(), index)
    expected = mistral_of(model, 4)(input_ids=ids[:, 11:], past_key_values=other).logits
    with regard.swap(model, "window", size=4):
        got = model(input_ids=ids[:, 11:], past_key_values=begun).logits
    torch.testing.assert_close(got, expected, **CLOSE)


@torch.no_grad()
def test_padding_that_decodes_is_none_of_the_past():
    model, ids = causal("Llama"), tokens(2, 17)
    mask = torch.ones_like(ids)
    mask[0, 7:11] = mask[1, 14] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with regard.swap(model, "window(size=5, sinks=2)"):
        expected = logits(model, ids, attention_mask=mask, position_ids=places)
        cache, found = DynamicCache(config=model.config), []
        for part in (slice(11), slice(11, 13), *(slice(at, at + 1) for at in range(13, 17))):
            inputs = {"attention_mask": mask[:, : part.stop], "position_ids": places[:, part]}
            found.append(model(input_ids=ids[:, part], past_key_values=cache, **inputs).logits)
    torch.testing.assert_close(torch.cat(found, 1)[mask.bool()], expected[mask.bool()], **CLOSE)


@torch.no_grad()
def test_a_swapped_cache_is_that_swaps_alone():
    model, ids = causal("Llama"), tokens(2, 9)
    cache = DynamicCache(config=model.config)
    with regard.swap(model, "window", size=3):
        model(input_ids=ids, past_key_values=cache)
        branched = copy.deepcopy(cache)
        one = model(input_ids=ids[:, :2], past_key_values=cache).logits
        torch.testing.assert_close(model(input_ids=ids[:, :2], past_key_values=branched).logits, one)
        with pytest.raises(RuntimeError, match="a cache of swapped layers to reset"):
            cache.reset()
    with pytest.raises(RuntimeError, match="past_key_values: got a cache of a swap that is out again"):
        model(input_ids=ids[:, :1], past_key_values=cache)
    cache, other = DynamicCache(config=model.config), causal("Llama")
    with regard.swap(model, "window", size=3), regard.swap(other, "window", size=3):
        model(input_ids=ids, past_key_values=cache)
        with pytest.raises(RuntimeError, match="past_key_values: got a cache that another swap filled"):
            other(input_ids=ids[:, :1], past_key_values=cache)


@pytest.mark.parametrize("axes", [(1, 1, 13, 13), (2, 1, 13, 13), (2, 6, 13, 13), (2, 1, 1, 13)])
@pytest.mark.parametrize("made", [lambda: causal("Llama"), bert])
@pytest.mark.parametrize("hiding", [None, -1e4, -torch.inf])
def test_boolean_masks_of_pairs_are_honoured(made, axes, hiding):
    model, ids = made(), tokens(2, 13)
    axes = (axes[0], 3 if axes[1] == 6 and isinstance(model, transformers.BertModel) else axes[1], *axes[2:])
    seen = torch.rand(axes, generator=torch.Generator().manual_seed(1)) < 0.6
    seen = seen | torch.eye(13, dtype=torch.bool) if axes[2] == 13 else seen
    mask = seen if hiding is None else torch.zeros(axes).masked_fill(~seen, hiding)
    shown = torch.zeros(axes).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = eager(model, input_ids=ids, attention_mask=shown)[0]
        with regard.swap(model, "softmax"):
            got = model(input_ids=ids, attention_mask=mask)[0]
    torch.testing.assert_close(got, expected, **CLOSE)


def test_checkpointing_computes_again_what_the_mechanism_gave():
    model, ids = causal("Llama"), tokens(2, 11)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    found = []
    for checkpointing in (False, True):
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        with regard.swap(model, "power(window=2, sinks=1, block=2)"):
            model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss.backward()
        found.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    torch.testing.assert_close(found[0], found[1], **CLOSE)
    assert found[0].abs().max() > 0


def test_a_cache_with_a_window_that_the_attention_does_not_tell_is_refused():
    model, ids = causal("Llama"), tokens(1, 9)
    config = copy.deepcopy(model.config)
    config.sliding_window, config.layer_types = 5, ["sliding_attention"] * 2
    cache = DynamicCache(config=config)
    said = "past_key_values: got 5 keys of 10 tokens"
    with regard.swap(model, "softmax"), torch.no_grad():
        model(input_ids=ids, past_key_values=cache)
        with pytest.raises(ValueError, match=said):
            model(input_ids=ids[:, :1], past_key_values=cache)
