"""A tiny configuration of any model: every field is made small by what its name and its default say."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from transformers import PreTrainedConfig, ResNetConfig

from families.recipes import NEEDED

VOCABULARY = 120
TEXT = 90
"""Ids below this are no special tokens, apart from the first three."""


@dataclass(frozen=True)
class Sizes:
    """How small."""

    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head: int = 16
    inner: int = 96
    layers: int = 2
    image: int = 32
    patch: int = 8
    only_depth: bool = False


VARIANTS = (
    Sizes(),
    Sizes(image=64, patch=16),
    Sizes(hidden=128, head=32, inner=128),
    Sizes(kv_heads=4),
    Sizes(image=224, patch=16),
    Sizes(layers=4),
    Sizes(only_depth=True),
)
"""Tried in turn until a model can be built and run."""

RULES: tuple[tuple[str, Callable[[int, Sizes], int]], ...] = (
    (r"^(pad|_pad)_token_id$|^pad_index$", lambda v, s: 0),
    (r"^bos_token_id$|^decoder_start_token_id$", lambda v, s: 1),
    (r"^eos_token_id$", lambda v, s: 2),
    (r"vocab_size$|^vocab_size_|^n_vocab$|^num_embeddings$", lambda v, s: min(v, VOCABULARY)),
    (r"type_vocab", lambda v, s: v),
    (r"num_experts_per_tok|moe_topk|moe_k$|num_selected_experts|num_experts_per_token", lambda v, s: min(v, 2)),
    (r"shared_experts", lambda v, s: min(v, 1)),
    (r"experts$|num_local_experts|moe_num_experts", lambda v, s: min(v, 4)),
    (r"mamba_n_heads", lambda v, s: 2 * s.hidden // s.head),
    (r"mamba_d_ssm", lambda v, s: 2 * s.hidden),
    (r"rotary_dim", lambda v, s: min(v, s.head // 2)),
    (r"^n_group$|^topk_group$|num_expert_group", lambda v, s: 1),
    (r"first_k_dense_replace|num_dense_layers", lambda v, s: min(v, 1)),
    (r"num_nextn_predict_layers|num_kv_shared_layers", lambda v, s: 0),
    (r"(key_value|kv).*heads|multi_query_group_num|num_kv_heads|num_key_value_groups", lambda v, s: min(v, s.kv_heads)),
    (r"heads$|^n_head|num_attention_heads|^attention_heads", lambda v, s: min(v, s.heads)),
    (r"(^|_)(num_)?(hidden_)?layers$|^n_layer$|^depth$|_depth$|^n_layers$|num_blocks$", lambda v, s: min(v, s.layers)),
    (r"max_source_positions", lambda v, s: min(v, 32)),
    (r"max_position|n_positions|n_ctx|max_target_positions|max_seq_len|max_sequence_length|context_length|seq_length$",
     lambda v, s: min(v, 256)),
    (r"lora_rank$", lambda v, s: min(v, 24)),
    (r"index_topk", lambda v, s: min(v, 4)),
    (r"^(head_dim|d_kv|.*_head_dim|attention_head_dim|dim_head|d_head|kv_channels|mamba_d_head)$",
     lambda v, s: min(v, s.head)),
    (r"(intermediate|ffn|d_ff|d_inner|inner_dim|mlp_dim|feed_?forward|hidden_expansion)",
     lambda v, s: min(v, s.inner) if v > 8 else v),
    (r"^(hidden_size|d_model|n_embd|embed_dim|dim|emb_dim|hidden_dim|embedding_size|embedding_dim|width|projection_dim"
     r"|.*hidden_size|.*_hidden_dim|.*embed_dim|hidden_channels|d_embed|decoder_dim|encoder_dim|out_dim|output_dim"
     r"|classifier_proj_size|pooler_output_size|.*_proj_dim|mask_feature_size|feature_size|.*out_channels|.*_d_model)$",
     lambda v, s: min(v, s.hidden) if v > 8 else v),
    (r"image_size$|^img_size$|^resolution$|^input_size$", lambda v, s: min(v, s.image)),
    (r"patch_size$", lambda v, s: min(v, s.patch)),
    (r"^window_size$", lambda v, s: min(v, 4)),
    (r"sliding_window$|attention_window$|chunk_size$|local_attention$", lambda v, s: min(v, 8) if v else v),
    (r"num_queries|num_query_tokens|num_latents|n_latents|latent_query_num", lambda v, s: min(v, 11)),
)  # fmt: skip
DEPTH = re.compile(r"(^|_)(num_)?(hidden_)?layers$|^n_layer$|^depth$|^n_layers$")
SPECIAL = re.compile(r"token_(id|index)$")
PLAIN = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_eos_token_id")


def tiny(kind: type[PreTrainedConfig], sizes: Sizes) -> PreTrainedConfig:
    """A configuration of this class with small sizes."""
    return rebuilt(kind(), sizes, explicit=False)


def rebuilt(given: PreTrainedConfig, sizes: Sizes, explicit: bool) -> PreTrainedConfig:
    """The same class with small values; ``explicit``: ``given`` says more than its class's defaults."""
    kind = type(given)
    plain = kind() if explicit else given
    declared = {field.name: field.default for field in fields(kind) if field.init}
    values: dict[str, Any] = {}
    special = 0
    for name, default in declared.items():
        value = had(given, name)
        if value is not None and value.__class__.__name__.startswith("Timm"):
            values[name] = residual()
        elif isinstance(value, PreTrainedConfig):
            values[name] = rebuilt(value, sizes, explicit=True)
        elif name == "layer_types" and value:
            values[name] = kinds_of(value, sizes)
        elif default is not None or value != had(plain, name):
            values[name] = smaller(name, value, sizes)
        if SPECIAL.search(name) and name not in PLAIN and isinstance(value, int) and not sizes.only_depth:
            values[name] = TEXT + special
            special += 1
    if isinstance(values.get("layer_types"), list):
        for name in values:
            if DEPTH.search(name) and isinstance(values[name], int):
                values[name] = max(values[name], len(values["layer_types"]))
    values |= {"use_timm_backbone": False, "backbone": None} if "use_timm_backbone" in declared else {}
    if "mrope_section" in getattr(kind, "ignore_keys_at_rope_validation", ()):
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4} | rotary(values, sizes)
    values |= NEEDED.get(kind.model_type, {})
    made = kind(**{name: value for name, value in values.items() if value is not None})
    return staged(made, len(getattr(given, "out_indices", None) or []))


def staged(made: PreTrainedConfig, count: int) -> PreTrainedConfig:
    """The configuration with its last ``count`` stages given out, where it is a backbone that has as many."""
    stages = len(getattr(made, "stage_names", None) or [])
    if 1 < count < stages:
        made.set_output_features_output_indices(out_features=None, out_indices=list(range(stages - count, stages)))
    return made


def had(config: PreTrainedConfig, name: str) -> Any:
    """A field's value, None where it is one a layer."""
    try:
        return getattr(config, name, None)
    except Exception:
        return None


def residual() -> ResNetConfig:
    """A convolutional backbone of Transformers' own in place of one that another library has."""
    return ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )


def kinds_of(layers: list[str], sizes: Sizes) -> list[str]:
    """Layers of every kind that there is."""
    kinds = list(dict.fromkeys(layers))
    return (kinds * sizes.layers)[: max(sizes.layers, len(kinds))]


def smaller(name: str, value: Any, sizes: Sizes) -> Any:
    """A field's value made small; what has no rule stays."""
    if isinstance(value, bool) or value is None or isinstance(value, (str, float)):
        return value
    if sizes.only_depth:
        return min(value, sizes.layers) if isinstance(value, int) and DEPTH.search(name) else value
    if isinstance(value, int):
        return next((rule(value, sizes) for pattern, rule in RULES if re.search(pattern, name)), value)
    if isinstance(value, (list, tuple)) and value and all(type(one) is int for one in value):
        return type(value)(several(name, list(value), sizes))
    if isinstance(value, Mapping) and "mrope_section" in value:
        return {**value, "mrope_section": sections(value["mrope_section"], sizes.head // 2)}
    return value


def several(name: str, values: list[int], sizes: Sizes) -> list[int]:
    """A list of sizes, mostly one a stage."""
    if re.search(r"depths|num_blocks|layers$|block_repeats", name):
        return [min(value, 1) for value in values]
    if re.search(r"image_size|img_size", name):
        return [min(value, sizes.image) for value in values]
    if re.search(r"(hidden_sizes|embed_dims?|dims|embed_dim)$", name) and max(values) > 16:
        return [16 * 2 ** min(step, 3) for step in range(len(values))]
    if re.search(r"heads", name):
        return [min(value, 2) for value in values]
    return values


def rotary(values: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Sections of a head for time, height and width."""
    given = values.get("rope_parameters") or {}
    half = int(sizes.head * values.get("partial_rotary_factor", given.get("partial_rotary_factor", 1))) // 2
    return given | {"mrope_section": sections(given.get("mrope_section", [1, 1, 1]), half)}


def sections(given: list[int], half: int) -> list[int]:
    """Rotary sections in the given proportion that add up to half a head."""
    total = sum(given)
    parts = [max(1, value * half // total) for value in given]
    parts[-1] += half - sum(parts)
    return parts
