"""What some configurations want that no rule about names and defaults gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BOTH = ["linear_attention", "full_attention"]
SLIDING = {
    "layer_types": ["sliding_attention", "full_attention"],
    "num_hidden_layers": 2,
    "num_kv_shared_layers": 0,
}
HYBRID = {
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "num_hidden_layers": 4,
    "attention_hidden_size": 128,
    "attention_head_dim": 32,
}

NEEDED: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4, "topk_method": "greedy"},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "zamba": HYBRID | {"mamba_dt_rank": 4, "n_mamba_heads": 2},
    "zamba2": HYBRID | {"mamba_headdim": 32, "n_mamba_heads": 4},
    "bamba": {"attn_layer_indices": [1], "mamba_d_state": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "granitemoehybrid": {"layer_types": BOTH, "num_hidden_layers": 2},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "nemotron_h": {"n_groups": 1, "mamba_num_heads": 4, "mamba_head_dim": 16},
    "ministral": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16, "num_key_value_heads": 2},
    "hunyuan_v1_moe": {"head_dim": 16, "num_key_value_heads": 2},
    "hunyuan_vl_text": {"head_dim": 16, "num_key_value_heads": 2},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "gemma4_text": SLIDING,
    "gemma4_unified_text": SLIDING,
    "gemma3n_text": SLIDING | {"intermediate_size": [96, 96], "activation_sparsity_pattern": [0.0, 0.0]},
    "esm": {"vocab_size": 120, "pad_token_id": 1, "mask_token_id": 32},
    "chameleon": {"vocabulary_map": {"<image>": 100} | {f"IMGIMG{a}Z": 101 + i for i, a in enumerate("ABCDEFGH")}},
    "clap_audio_model": {"hidden_size": 64, "patch_embeds_hidden_size": 16, "depths": [1, 1, 1],
                         "num_attention_heads": [2, 2, 4], "spec_size": 64, "num_mel_bins": 16},
    "hgnet_v2": {"hidden_sizes": [128, 512, 1024, 2048], "stage_out_channels": [128, 512, 1024, 2048]},
    "vits": {"vocab_size": 120},
    "speecht5": {"vocab_size": 120},
    "glm4v_moe_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
                                           "mrope_section": [1, 1, 2]}},
    "audio-spectrogram-transformer": {"max_length": 64, "num_mel_bins": 32, "patch_size": 16},
    "xmod": {"default_language": "en_XX"},
    "informer": {"prediction_length": 8, "context_length": 16},
    "autoformer": {"prediction_length": 8, "context_length": 16},
    "time_series_transformer": {"prediction_length": 8, "context_length": 16},
    "reformer": {"is_decoder": True},
}  # fmt: skip
"""Fields of a configuration by the model's type."""
