"""The sizes of a Transformers model, from its configuration alone."""

from __future__ import annotations

from typing import Any

from regard.core.errors import did_you_mean, wrong
from regard.plan.roofline import MODELS, GroupedAttention, LatentAttention, ModelShape, Network


def model_shape(name: str) -> ModelShape:
    """A published model by its name, or the model whose ``config.json`` lies in the folder ``name``.

    Raises:
        ValueError: neither, or a configuration without the sizes of a decoder.
    """
    if name in MODELS:
        return MODELS[name]
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        wanted = f"a folder with a config.json, or one of {', '.join(MODELS)}{did_you_mean(name, MODELS)}"
        raise wrong("model", repr(name), wanted) from error
    return from_config(config)


def from_config(config: Any) -> ModelShape:
    """The sizes of a Transformers configuration of a decoder with gated networks."""

    def size(*names: str, default: int | None = None) -> int:
        for name in names:
            if isinstance(found := getattr(config, name, None), int):
                return found
        if default is None:
            raise wrong("config", f"{type(config).__name__} without {names[0]}", "the configuration of a decoder")
        return default

    width, heads = size("hidden_size"), size("num_attention_heads")
    if hasattr(config, "kv_lora_rank"):
        attention: GroupedAttention | LatentAttention = LatentAttention(
            *(width, heads, size("q_lora_rank", default=0), size("kv_lora_rank")),
            *(size("qk_nope_head_dim"), size("qk_rope_head_dim"), size("v_head_dim")),
        )
    else:
        kv_heads = size("num_key_value_heads", default=heads)
        attention = GroupedAttention(width, heads, kv_heads, size("head_dim", default=width // heads))
    layers, experts = size("num_hidden_layers"), size("n_routed_experts", "num_local_experts", "num_experts", default=0)
    inner = size("intermediate_size")
    if not experts:
        return ModelShape(attention, ((layers, Network(width, inner)),), size("vocab_size"))
    dense = size("first_k_dense_replace", default=0)
    small = size("moe_intermediate_size", default=inner)
    routed = Network(
        width, small, experts, size("num_experts_per_tok", "moe_topk"), size("n_shared_experts", default=0)
    )
    networks = ((dense, Network(width, inner)), (layers - dense, routed))
    return ModelShape(attention, tuple(part for part in networks if part[0]), size("vocab_size"))
