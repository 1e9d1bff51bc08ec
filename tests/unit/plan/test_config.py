"""Configurations of tiny models of many families: the planned cache is the cache that the model then has."""

import inspect
import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers.models.qwen3_next import modeling_qwen3_next

from regard.plan.config import Sizes, from_config, model_shape
from regard.plan.mixers import GroupedAttention

BASE = {"vocab_size": 53, "hidden_size": 40, "num_hidden_layers": 5}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 72}
MAMBA = {"mamba_d_state": 6, "mamba_d_conv": 3}
MAMBA2 = MAMBA | {"mamba_n_heads": 5, "mamba_d_head": 16, "mamba_n_groups": 1}
MIXED = ["linear_attention", "full_attention", "linear_attention", "linear_attention", "full_attention"]
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 10}
EXPERTS = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 12}
FAMILIES = {
    "LlamaConfig": HEADS | {"head_dim": 14},
    "MistralConfig": HEADS | {"sliding_window": 7},
    "Gemma3TextConfig": HEADS | {"head_dim": 14, "sliding_window": 7, "layer_types": None},
    "GptOssConfig": HEADS | {"head_dim": 14, "sliding_window": 7, "num_local_experts": 7, "num_experts_per_tok": 3},
    "Qwen3MoeConfig": HEADS | EXPERTS | {"head_dim": 14, "mlp_only_layers": [0, 3]},
    "Qwen2MoeConfig": HEADS | EXPERTS | {"shared_expert_intermediate_size": 20, "use_sliding_window": False},
    "Qwen3NextConfig": HEADS | EXPERTS | DELTA | {"head_dim": 14, "shared_expert_intermediate_size": 20},
    "MiniMaxConfig": HEADS | {"num_local_experts": 7, "num_experts_per_tok": 3, "layer_types": MIXED},
    "JambaConfig": HEADS | MAMBA | {"num_experts": 7, "attn_layer_period": 3, "attn_layer_offset": 1},
    "BambaConfig": HEADS | MAMBA2 | {"attn_layer_indices": [1, 4]},
    "FalconH1Config": HEADS | MAMBA2 | {"mamba_d_ssm": 80, "head_dim": 14},
    "Lfm2Config": HEADS | {"conv_L_cache": 3, "block_multiple_of": 8, "full_attn_idxs": [1, 3]},
    "MambaConfig": {"state_size": 6, "conv_kernel": 3},
    "Mamba2Config": {"state_size": 6, "conv_kernel": 3, "num_heads": 5, "head_dim": 16, "n_groups": 1},
    "Llama4TextConfig": HEADS
    | {"head_dim": 14, "attention_chunk_size": 7, "num_local_experts": 3, "intermediate_size_mlp": 28},
}


@pytest.fixture(autouse=True)
def without_triton(monkeypatch):
    """Transformers takes flash-linear-attention's kernels where that is installed, without a GPU too: not here."""
    for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
        monkeypatch.setattr(modeling_qwen3_next, name, inspect.unwrap(getattr(modeling_qwen3_next, name)))


@torch.no_grad()
def held(model, tokens):
    """Numbers that the model's cache holds after ``tokens``, all layers."""
    ids = torch.arange(tokens)[None] % model.config.vocab_size
    out = model(ids, use_cache=True)
    cache = getattr(out, "past_key_values", None)
    cache = next(value for value in out.values() if hasattr(value, "layers")) if cache is None else cache
    seen, total = set(), sum(state.numel() for state in getattr(cache, "linear_cache", []) if len(state))
    for layer in cache.layers:
        for value in vars(layer).values():
            for tensor in value.values() if isinstance(value, dict) else [value]:
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and id(tensor) not in seen:
                    seen.add(id(tensor))
                    total += tensor.numel()
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_caches_are_the_models(family):
    """Before and after windows are full; where they slide, the model keeps one token less than a query sees."""
    torch.manual_seed(0)
    config = getattr(transformers, family)(**BASE, **FAMILIES[family])
    shape = from_config(config)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    sliding = sum(n * m.token_numbers for n, m in shape.mixers if isinstance(m, GroupedAttention) and m.window)
    for tokens in (5, 23):
        want = shape.cache_bytes(tokens) / shape.itemsize
        assert 0 <= want - held(model, tokens) <= (sliding if tokens > 7 else 0)


def test_a_folder_is_read(tmp_path):
    config = transformers.LlamaConfig(**BASE, **HEADS, head_dim=14)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    shape = model_shape(str(tmp_path))
    assert shape.mixers == ((5, GroupedAttention(40, 4, 2, 14)),)
    assert shape.parameters == 2 * 53 * 40 + 5 * (2 * 40 * (4 + 2) * 14 + 3 * 40 * 72)


@pytest.mark.parametrize(
    ("family", "sizes", "words"),
    [
        ("BertConfig", {}, "BertConfig, an encoder"),
        ("T5Config", {}, "an encoder"),
        ("Gemma3nTextConfig", HEADS | {"num_hidden_layers": 20}, "layers that share their cache"),
        ("RecurrentGemmaConfig", {}, "without state_size"),
        ("DeepseekV32Config", {}, "an indexer that chooses keys"),
        ("OPTConfig", {"ffn_dim": 90, "num_attention_heads": 4}, "its sizes make .* the model has"),
    ],
)
def test_what_is_not_planned_is_refused(family, sizes, words):
    """A part of the model that is not read is named, or noticed by the parameters; nothing is planned without it."""
    with pytest.raises(ValueError, match=words):
        from_config(getattr(transformers, family)(**BASE | sizes))


def test_kinds_of_layers_by_all_their_names():
    sizes = {"num_hidden_layers": 2, "sliding_window": 7, "attention_chunk_size": 5}
    assert Sizes(SimpleNamespace(**sizes)).kinds() == ["sliding_attention"] * 2
    assert Sizes(SimpleNamespace(**sizes | {"sliding_window": None})).kinds() == ["chunked_attention"] * 2
    assert Sizes(SimpleNamespace(num_hidden_layers=2)).kinds() == ["full_attention"] * 2
    listed = Sizes(SimpleNamespace(**sizes, layers_block_type=["mamba", "attention"]))
    assert listed.kinds() == ["linear_attention", "full_attention"]


def test_a_model_unknown_to_all():
    with pytest.raises(
        ValueError, match=r"model: got 'nowhere/at-all', want a folder with a config.json, or one of qwen3"
    ):
        model_shape("nowhere/at-all")


def test_a_model_hub_that_no_network_leads_to_is_not_asked(monkeypatch):
    asked = []

    def read(name, local_files_only):
        asked.append((name, local_files_only))
        raise OSError("none")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", read)
    for answers in (False, True):
        monkeypatch.setattr("regard.hosts.load.hub_answers", lambda answers=answers: answers)
        with pytest.raises(ValueError, match=r"did you mean 'qwen3-8b'\?"):
            model_shape("qwen3-8")
    assert asked == [("qwen3-8", True), ("qwen3-8", False)]
