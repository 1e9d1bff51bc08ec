"""A swapped model computes what the mechanism defines, in prefill, padding, chunks and generation, and is put back."""

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import regard
from regard.hosts.state_cache import StateCacheLayer
from regard.hosts.swap import head_dim_of
from unit.hosts.models import bert, causal, eager, rwkv, tokens

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PLAIN = ["Llama", "Qwen3", "GPT2"]


@torch.no_grad()
def logits(model, ids, **inputs):
    return model(input_ids=ids, use_cache=False, **inputs).logits


def mistral_of(model, size: int):
    """The same Llama weights under Mistral's own sliding window: Transformers' answer to what a window gives."""
    from transformers import MistralConfig, MistralForCausalLM

    config = {key: getattr(model.config, key) for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    config |= {key: getattr(model.config, key) for key in ("num_attention_heads", "num_key_value_heads", "head_dim")}
    config |= {"vocab_size": model.config.vocab_size, "max_position_embeddings": 128, "sliding_window": size}
    other = MistralForCausalLM(MistralConfig(**config, pad_token_id=0, bos_token_id=1, eos_token_id=2))
    other.load_state_dict(model.state_dict())
    return other.eval()


@pytest.mark.parametrize("name", PLAIN)
def test_a_window_of_everything_is_the_model(name):
    model, ids = causal(name), tokens(2, 23)
    expected = logits(model, ids)
    with regard.swap(model, "window", size=23):
        torch.testing.assert_close(logits(model, ids), expected, **CLOSE)
    assert torch.equal(logits(model, ids), expected)


def test_a_window_is_what_transformers_makes_of_it():
    model, ids = causal("Llama"), tokens(3, 29)
    mask = torch.ones_like(ids)
    mask[1, :5] = mask[2, :11] = 0
    other = mistral_of(model, 7)
    expected = logits(other, ids, attention_mask=mask)
    with regard.swap(model, "window(size=7)"):
        got = logits(model, ids, attention_mask=mask)
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], **CLOSE)


def test_a_layers_own_window_cuts_what_a_mechanism_by_position_sees():
    model, ids = causal("Llama"), tokens(3, 29)
    with regard.swap(model, "Window(7) & (Window(3) | Sinks(2) | Power(4))"):
        expected = logits(model, ids)
    other = mistral_of(model, 7)
    with regard.swap(other, "power(window=3, sinks=2, block=4)"):
        torch.testing.assert_close(logits(other, ids), expected, **CLOSE)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_generation_goes_on_from_the_mechanisms_own_state(beams, padded):
    model, ids = causal("Llama"), tokens(2, 17)
    mask = torch.ones_like(ids)
    mask[1, : 5 * padded] = 0
    settings = {"max_new_tokens": 13, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    expected = mistral_of(model, 5).generate(ids, attention_mask=mask, **settings)
    with regard.swap(model, "window", size=5):
        got = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **settings)
    assert torch.equal(got.sequences, expected)
    cache = got.past_key_values
    assert all(isinstance(layer, StateCacheLayer) for layer in cache.layers)
    assert {held.state.k.shape[2] for layer in cache.layers for held in layer.held.values()} == {4}


def test_chunked_prefill_equals_one_pass():
    from transformers import DynamicCache

    model, ids = causal("Llama"), tokens(2, 23)
    with regard.swap(model, "window", size=6, sinks=2), torch.no_grad():
        expected = logits(model, ids)
        cache = DynamicCache(config=model.config)
        parts = [model(input_ids=ids[:, part], past_key_values=cache).logits for part in (slice(11), slice(11, 23))]
        torch.testing.assert_close(torch.cat(parts, 1), expected, **CLOSE)
        begun = model(input_ids=ids[:, :11], use_cache=True).past_key_values  # the model's own cache: all keys
        torch.testing.assert_close(model(input_ids=ids[:, 11:], past_key_values=begun).logits, parts[1], **CLOSE)


def test_only_the_layers_that_are_named():
    model, ids = causal("Llama"), tokens(1, 19)
    both, neither = mistral_of(model, 3), logits(model, ids)
    with regard.swap(model, "window", layers=[], size=3):
        torch.testing.assert_close(logits(model, ids), neither, **CLOSE)
    with regard.swap(model, "window", layers=[0, 1], size=3):
        torch.testing.assert_close(logits(model, ids), logits(both, ids), **CLOSE)
    with regard.swap(model, {1: "window(size=3)"}):
        one = logits(model, ids)
    assert not torch.allclose(one, neither, **CLOSE)
    assert not torch.allclose(one, logits(both, ids), **CLOSE)


def test_heads_of_the_layers_may_differ_in_size():
    import transformers

    if not hasattr(transformers, "Gemma4ForCausalLM"):
        pytest.skip("this Transformers has no Gemma 4")
    from families.shrink import Sizes, tiny

    torch.manual_seed(0)
    model = transformers.Gemma4ForCausalLM(tiny(transformers.Gemma4TextConfig, Sizes())).eval()
    assert len({layer.head_dim for layer in model.config.per_layer_config}) == 2
    assert [head_dim_of(model, layer) for layer in range(2)] == [x.head_dim for x in model.config.per_layer_config]
    ids = tokens(2, 23)
    expected, generated = logits(model, ids), model.generate(ids, max_new_tokens=4, do_sample=False)
    with regard.swap(model, "window", size=64):
        torch.testing.assert_close(logits(model, ids), expected, **CLOSE)
        assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), generated)


def test_the_models_own_window_is_kept_to():
    model, ids = causal("Mistral"), tokens(2, 23)  # its window is 7
    expected = logits(model, ids)
    with regard.swap(model, "window", size=11):
        torch.testing.assert_close(logits(model, ids), expected, **CLOSE)
    with regard.swap(model, "window", size=3):
        assert not torch.allclose(logits(model, ids), expected, **CLOSE)


def test_two_sided_models_are_swapped_with_their_padding():
    model, ids = bert(), tokens(2, 17)
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    expected = eager(model, input_ids=ids, attention_mask=mask).last_hidden_state
    with regard.swap(model, "window", size=17), torch.no_grad():
        got = model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], **CLOSE)


def test_for_good_and_back():
    model, ids = causal("Llama"), tokens(1, 19)
    before = logits(model, ids)
    held = regard.swap(model, "window", size=3).install()
    assert not torch.allclose(logits(model, ids), before, **CLOSE)
    held.remove()
    assert torch.equal(logits(model, ids), before)


def test_what_is_swapped_for_good_goes_with_its_last_owner():
    """Transformers' tables keep no model alive, and its configuration serves another one."""
    model, ids = causal("Llama"), tokens(1, 13)
    regard.swap(model, "window", size=3).install()
    with regard.watch(model, probes=[]):
        logits(model, ids)
    known, kind, config = weakref.ref(model), type(model), model.config
    name = config._attn_implementation
    del model
    gc.collect()
    assert known() is None
    assert name not in ALL_ATTENTION_FUNCTIONS
    assert logits(kind(config), ids).isfinite().all()


def test_the_gradient_flows_through_it():
    model, ids = causal("Llama"), tokens(1, 13)
    with regard.swap(model, "window", size=3):
        model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "q_proj" in n)


class Trained(regard.Mechanism):
    """A mechanism that cannot work untrained."""

    signals = {"beta": regard.Signal("strength")}  # noqa: RUF012


@pytest.mark.parametrize(
    ("mechanism", "config", "message"),
    [
        (Trained(), {}, "Trained, which needs beta"),
        ("softmax", {"sink_heads": 6}, "Softmax, which needs sink"),
        ("forgetting", {}, "Forgetting, which needs log_forget"),
        ("differential", {}, "Differential, which needs vectors"),
        ("nothing_of_the_kind", {}, "nothing_of_the_kind"),
        ("window", {"width": 3}, "width"),
        (Trained(), {"size": 3}, "the mechanism is made already"),
    ],
)
def test_what_would_have_to_be_trained_is_refused_by_name(mechanism, config, message):
    with pytest.raises((ValueError, TypeError, LookupError), match=message):
        regard.swap(causal("Llama"), mechanism, **config)


def test_what_cannot_be_followed_is_refused():
    ids = tokens(1, 11)
    with pytest.raises(TypeError, match="a Linear"):
        regard.swap(torch.nn.Linear(2, 2), "window")
    with pytest.raises(
        ValueError, match="Linear, which needs queries and keys without rotary positions, want one that"
    ):
        regard.swap(causal("Llama"), "linear")
    with regard.swap(model := causal("Gemma2"), "window", size=3), pytest.raises(ValueError, match="softcap"):
        logits(model, ids)
    with regard.swap(model := causal("GptOss"), "window", size=3), pytest.raises(ValueError, match="s_aux"):
        logits(model, ids)
    with regard.swap(model := rwkv(), "window", size=3), pytest.raises(RuntimeError, match="without calling"):
        logits(model, ids)
    with regard.swap(model := causal("Llama"), "window", layers=[7], size=3), pytest.raises(ValueError, match="0 to 1"):
        logits(model, ids)
    own = torch.ones(1, 1, 11, 11, dtype=torch.bool).tril().triu(-1)
    with (
        regard.swap(model := causal("Llama"), "fastmax"),
        pytest.raises(ValueError, match="attention_mask: got a mask of"),
    ):
        logits(model, ids, attention_mask=own)
    with regard.swap(model, "window", size=3), pytest.raises(RuntimeError, match="swapped already"):
        regard.swap(model, "window").install()
    added = torch.zeros(1, 1, 1, 11).index_fill(3, torch.tensor([4]), 1.5)
    with regard.swap(model := bert(), "softmax"), pytest.raises(ValueError, match="no swap adds to scores"):
        model(input_ids=ids, attention_mask=added)


@pytest.mark.parametrize("text", ["Window(9) | Sinks(2)", "Causal & (Blocks(16) | Power(4))"])
def test_patterns_are_swapped_in_by_their_text(text):
    model, ids = causal("Llama"), tokens(1, 57)
    with regard.swap(model, text):
        whole = model(ids).logits
        cache = model(ids[:, :40], use_cache=True).past_key_values
        rest = model(ids[:, 40:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(whole[:, 40:], rest, atol=1e-4, rtol=1e-4)
    with regard.swap(model, regard.patterns.parse_pattern(text)):
        torch.testing.assert_close(model(ids).logits, whole)
    with regard.swap(model, text, scale=0.3):
        assert not torch.allclose(model(ids).logits, whole)
    with regard.swap(model, "Window(1000)"):
        swapped = model(ids).logits
    torch.testing.assert_close(swapped, model(ids).logits, atol=1e-4, rtol=1e-4)


class OwnCode(torch.nn.Module):
    """Softmax attention of one head beside the attention interface."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = torch.nn.Linear(width, 3 * width)

    def forward(self, hidden_states, **_):
        q, k, v = self.project(hidden_states).chunk(3, -1)
        hidden = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf)
        return scores[:, None].softmax(-1)[:, 0] @ v, None


def test_a_model_of_attention_in_its_own_code_alone_is_refused_by_the_name_of_what_computes_it():
    model, ids = causal("Llama"), tokens(2, 11)
    for layer in model.model.layers:
        layer.self_attn = OwnCode(model.config.hidden_size).eval()
    said = r"interface: model\.layers\.0\.self_attn, a OwnCode, computes attention in its own code, and 1 more do, want"
    with regard.swap(model, "window", size=5), pytest.raises(RuntimeError, match=said):
        logits(model, ids)
    with regard.swap(model, "window", layers=[0], size=5), pytest.raises(RuntimeError, match="own code, or has none"):
        logits(model, ids)
    with regard.swap(model := rwkv(), "window", size=3), pytest.raises(RuntimeError, match="no softmax in it weighs"):
        model(ids)


def test_attention_of_the_models_own_code_stays_and_is_named():
    model, ids = causal("Llama"), tokens(2, 11)
    with warnings.catch_warnings(), regard.swap(model, "window", size=5):
        warnings.simplefilter("error")
        logits(model, ids)
    model.model.layers[1].self_attn = OwnCode(model.config.hidden_size).eval()
    expected = logits(model, ids)
    said = r"model\.layers\.1\.self_attn of LlamaForCausalLM computes attention in its own code, and keeps it: swapped"
    with regard.swap(model, "window", size=5), pytest.warns(UserWarning, match=said):
        other = logits(model, ids)
    assert not torch.allclose(other, expected, **CLOSE)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with regard.swap(model, "window", layers=[0], size=5), warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(logits(model, ids), other, **CLOSE)
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
