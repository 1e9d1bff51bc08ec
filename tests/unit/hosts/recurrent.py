"""Tiny models with random weights, one of every family of Transformers that has recurrent layers which can be read."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

import torch
import transformers

from unit.hosts.models import ROPE, VOCABULARY

SIZES = {name: ROPE[name] for name in ("vocab_size", "intermediate_size", "pad_token_id")}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
THREE_HEADS = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3}
MAMBA = {
    "hidden_size": 16, "state_size": 3, "num_hidden_layers": 2, "time_step_rank": 5, "intermediate_size": 14,
    "pad_token_id": 0,
}  # fmt: skip
MAMBA2 = {
    "mamba_n_heads": 6, "mamba_d_head": 8, "mamba_n_groups": 3, "mamba_d_state": 5, "mamba_chunk_size": 8,
    "mamba_expand": 2,
}  # fmt: skip
DELTA = HYBRID | {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 5, "linear_value_head_dim": 7,
}  # fmt: skip
EXPERTS = {
    "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
}  # fmt: skip
KIMI = HYBRID | {
    "kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 5,
    "num_attention_heads": 3, "num_key_value_heads": 3, "linear_head_dim": 7, "linear_num_heads": 3,
    "mlp_layer_types": ["dense", "dense"], "num_local_experts": 2, "num_experts_per_tok": 1, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 8, "n_shared_experts": 1,
}  # fmt: skip
CONFIGS = {
    "Mamba": MAMBA,
    "FalconMamba": MAMBA,
    "Jamba": SIZES | THREE_HEADS | {
        "attn_layer_period": 3, "attn_layer_offset": 2, "num_experts": 1, "mamba_d_state": 5, "mamba_dt_rank": 7,
        "use_mamba_kernels": False,
    },
    "Zamba": SIZES | THREE_HEADS | {
        "layers_block_type": ["mamba", "hybrid", "hybrid"], "n_mamba_heads": 3, "mamba_d_state": 5, "mamba_dt_rank": 7,
        "use_associative_scan": False, "use_mamba_kernels": False,
    },
    "Mamba2": {
        "hidden_size": 21, "expand": 2, "state_size": 5, "num_hidden_layers": 2, "num_heads": 6, "head_dim": 7,
        "n_groups": 3, "chunk_size": 8, "pad_token_id": 0,
    },
    "Bamba": ROPE | MAMBA2 | {"attn_layer_indices": [1]},
    "FalconH1": ROPE | MAMBA2 | {
        "mamba_d_ssm": 48, "ssm_in_multiplier": 1.3, "ssm_multipliers": [0.7, 1.1, 1.3, 0.9, 1.7],
    },
    "GraniteMoeHybrid": ROPE | MAMBA2 | {
        "layer_types": ["mamba", "attention"], "num_local_experts": 0, "shared_intermediate_size": 11,
    },
    "NemotronH": {key: value for key, value in ROPE.items() if key != "num_hidden_layers"} | {
        "layers_block_type": ["mamba", "attention", "mlp", "mamba"], "mamba_num_heads": 6, "mamba_head_dim": 7,
        "n_groups": 3, "ssm_state_size": 5, "chunk_size": 8, "time_step_min": 1e-9,
    },
    "Zamba2": SIZES | THREE_HEADS | {
        "layers_block_type": ["mamba", "hybrid", "mamba"], "n_mamba_heads": 6, "mamba_headdim": 8, "mamba_d_state": 5,
        "mamba_ngroups": 3, "chunk_size": 8, "time_step_min": 1e-9, "use_mem_rope": True,
    },
    "Qwen3Next": ROPE | DELTA | EXPERTS,
    "Qwen3_5Text": ROPE | DELTA,
    "Qwen3_5MoeText": ROPE | DELTA | EXPERTS,
    "Qwen4ExpText": ROPE | DELTA | EXPERTS | {
        "hc_count": 2, "hc_lowrank": 5, "ngram_vocab_size_base": 31, "make_ngram_vocab_size_divisible_by": 2,
        "split_ngram_parts": 1, "heads_per_ngram": 2, "indexer_n_heads": 2, "indexer_kv_heads": 1,
        "indexer_head_dim": 4, "indexer_budget": 64, "indexer_compress_ratio": 2,
    },
    "LaraMini": ROPE | DELTA | EXPERTS,
    "OlmoHybrid": ROPE | DELTA | {"linear_num_key_heads": 4},
    "KimiLinear": ROPE | KIMI,
    "BailingHybrid": ROPE | KIMI,
    "MiniMax": ROPE | {
        "layer_types": ["full_attention", "linear_attention"], "num_local_experts": 2, "num_experts_per_tok": 1,
        "block_size": 7, "hidden_size": 32, "intermediate_size": 32, "head_dim": 6,
    },
}  # fmt: skip
RECURRENT = [name for name in CONFIGS if hasattr(transformers, f"{name}Config")]
"""Families that the installed Transformers has."""
FORGETFUL = ("Mamba", "FalconMamba", "Jamba")
"""Families whose scan begins anew at a second chunk of more than one token."""
GDN, GDN2 = "gated_deltanet", "gated_deltanet(negative=True)"
LAYERS = {
    "Mamba": ["mamba", "mamba"],
    "FalconMamba": ["mamba", "mamba"],
    "Jamba": ["mamba", "mamba", "softmax"],
    "Zamba": ["mamba", "softmax", "mamba", "softmax", "mamba"],
    "Mamba2": ["mamba2", "mamba2"],
    "Bamba": ["mamba2", "softmax"],
    "FalconH1": ["mamba2", "softmax", "mamba2", "softmax"],
    "GraniteMoeHybrid": ["mamba2", "softmax"],
    "NemotronH": ["mamba2", "softmax", "mamba2"],
    "Zamba2": ["mamba2", "softmax", "mamba2", "mamba2"],
    "OlmoHybrid": [GDN2, "softmax"],
    "KimiLinear": ["kimi_delta", "softmax"],
    "BailingHybrid": ["kimi_delta", "softmax"],
    "MiniMax": ["softmax", "lightning"],
} | {name: [GDN, "softmax"] for name in ("Qwen3Next", "Qwen3_5Text", "Qwen3_5MoeText", "Qwen4ExpText", "LaraMini")}
"""What computes the layers of each, in order."""


def recurrent(name: str, **changed: object) -> transformers.PreTrainedModel:
    """A causal language model by the name of its configuration, with states that last."""
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**{"vocab_size": VOCABULARY} | CONFIGS[name] | changed)
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config)
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            if "A_log" in label:
                parameter.sub_(2)
            elif parameter.dim() > 1:
                parameter.mul_(2)
            elif "bias" in label or label.endswith(".D"):
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def module_of(name: str) -> ModuleType:
    """The module of Transformers in which the family is written."""
    config = getattr(transformers, f"{name}Config").__module__
    return importlib.import_module(config.replace("configuration_", "modeling_"))


def scan_functions(name: str) -> dict[str, object]:
    """The functions of that module that run a whole scan of delta nets or mixers, by their names, in plain PyTorch."""
    found = {}
    for label, function in vars(module_of(name)).items():
        if label.endswith(("_selective_scan", "chunk_scan", "_delta_rule", "_delta_attention")):
            found[label] = inspect.unwrap(function)
    return found
