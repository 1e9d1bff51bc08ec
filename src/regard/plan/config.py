"""The sizes of a Transformers model, from its configuration, held to the parameters that the model then has."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch

from regard.core.errors import did_you_mean, wrong
from regard.plan.mixers import GroupedAttention, LatentAttention, Mixer, Recurrence
from regard.plan.published import MODELS
from regard.plan.roofline import ModelShape, Network

TOLERANCE = 0.01
"""Share of a model's matrices that may be no part of a plan, such as embeddings of positions."""
ATTENTION, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
RECURRENT, CONVOLUTION, BOTH = "linear_attention", "conv", "hybrid"
FORMERLY: dict[Any, str] = {"mamba": RECURRENT, "attention": ATTENTION}
"""What older releases of Transformers call the same kinds."""
EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts")
NETWORKS = ("moe", "mlp")
"""Layers of a network alone; where there are some, the others are mixers alone."""
UNREAD = {
    "num_kv_shared_layers": "layers that share their cache",
    "index_topk": "an indexer that chooses keys",
    "attention_k_eq_v": "keys that are the values",
}
"""What changes the cache or what is read of it, and is not planned."""
T = TypeVar("T", bound=Hashable)


def model_shape(name: str) -> ModelShape:
    """A published model by its name, or the model whose ``config.json`` lies in the folder ``name``.

    Raises:
        ValueError: neither, or a configuration without the sizes of a decoder.
    """
    if name in MODELS:
        return MODELS[name]
    from transformers import AutoConfig

    from regard.hosts.load import hub_answers

    try:
        config = AutoConfig.from_pretrained(name, local_files_only=Path(name).is_dir() or not hub_answers())
    except (OSError, ValueError) as error:
        wanted = f"a folder with a config.json, or one of {', '.join(MODELS)}{did_you_mean(name, MODELS)}"
        raise wrong("model", repr(name), wanted) from error
    return from_config(config)


def from_config(config: Any) -> ModelShape:
    """The sizes of a Transformers configuration of a decoder; of one with images or sounds, those of its text model.

    Every layer is read as what it is: attention of all tokens, in a window or in chunks, latent attention, a
    recurrence, experts. The parameters of the shape must be those of the model's matrices, less at most `TOLERANCE` of
    them, so that what is not read is refused instead of planned wrongly.

    Raises:
        ValueError: no decoder, or one with parts that are not planned.
    """
    sizes = Sizes(config.get_text_config(decoder=True))
    if config.is_encoder_decoder or getattr(sizes.config, "is_decoder", True) is False:
        raise wrong("config", f"{sizes.name}, an encoder", "the configuration of a decoder")
    kinds = sizes.kinds()
    layers = [sizes.of(layer) for layer in range(len(kinds))]
    mixers = alike(mixer for each, kind in zip(layers, kinds, strict=True) for mixer in mixers_of(each, kind))
    tied = bool(getattr(sizes.config, "tie_word_embeddings", False))
    counted, guesses = matrices_of(sizes.config), []
    for matrices in (3, 2):
        shape = ModelShape(mixers, alike(networks_of(layers, kinds, matrices)), sizes("vocab_size"), tied)
        if 0 <= 1 - shape.parameters / counted <= TOLERANCE:
            return shape
        guesses.append(f"{shape.parameters / 1e9:.4g} B")
    found = f"{sizes.name}: its sizes make {' or '.join(guesses)} parameters, the model has {counted / 1e9:.4g} B"
    raise wrong("config", found, "a decoder of parts that are planned")


def matrices_of(config: Any) -> int:
    """Numbers of the matrices of the model that Transformers makes of the configuration, tied ones once.

    Norms and biases are left out. Nothing is allocated.
    """
    from transformers import AutoModelForCausalLM

    quiet = logging.getLogger("transformers")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise wrong("config", f"{type(config).__name__} ({reason})", "one that a decoder can be made of") from error
    finally:
        quiet.setLevel(level)
    return sum(p.numel() for name, p in model.named_parameters() if p.dim() > 1 and "bias" not in name)


def alike(parts: Iterable[T]) -> tuple[tuple[int, T], ...]:
    """``(how many, part)`` of equal parts, in the order in which they first appear."""
    return tuple((count, part) for part, count in Counter(parts).items())


class Sizes:
    """A configuration's numbers by the first of their names that it has."""

    def __init__(self, config: Any) -> None:
        self.config, self.name = config, type(config).__name__

    def of(self, layer: int) -> Sizes:
        """Those of one layer, where layers differ."""
        return Sizes(self.config.per_layer_config[layer]) if getattr(self.config, "per_layer_config", None) else self

    def __call__(self, *names: str, default: int | None = None) -> int:
        for name in names:
            if isinstance(found := getattr(self.config, name, None), int):
                return found
        if default is None:
            raise wrong("config", f"{self.name} without {names[0]}", "the configuration of a decoder")
        return default

    def has(self, *names: str) -> bool:
        """Whether all of them are numbers."""
        return all(isinstance(getattr(self.config, name, None), int) for name in names)

    @property
    def width(self) -> int:
        return self("hidden_size", "n_embd", "d_model")

    @property
    def heads(self) -> int:
        return self("num_attention_heads", "n_head")

    def kinds(self) -> list[str]:
        """What each layer is; where nothing is said, attention in windows if there is one."""
        layers = self("num_hidden_layers", "n_layer")
        for name in ("layer_types", "layers_block_type"):
            if (listed := getattr(self.config, name, None)) is not None:
                return [FORMERLY.get(kind, str(kind)) for kind in listed]
        if self("sliding_window", default=0):
            return [SLIDING] * layers
        return [CHUNKED if self("attention_chunk_size", default=0) else ATTENTION] * layers

    def sparse(self, layer: int) -> bool:
        """Whether the layer has experts."""
        if not self(*EXPERTS, default=0):
            return False
        if (listed := getattr(self.config, "mlp_layer_types", None)) is not None:
            return listed[layer] == "sparse"
        if (listed := getattr(self.config, "moe_layers", None)) is not None:
            return layer in listed
        if self.has("expert_layer_period", "expert_layer_offset"):
            return layer % self("expert_layer_period") == self("expert_layer_offset")
        dense, step = getattr(self.config, "mlp_only_layers", None) or (), self("decoder_sparse_step", default=1)
        return layer >= self("first_k_dense_replace", default=0) and layer not in dense and (layer + 1) % step == 0


def mixers_of(sizes: Sizes, kind: str) -> list[Mixer]:
    """What mixes the tokens in a layer of this kind.

    Raises:
        ValueError: a kind that is not planned.
    """
    for name, what in UNREAD.items():
        if getattr(sizes.config, name, None):
            raise wrong("config", f"{sizes.name} with {what} ({name})", "attention, windows, latents and recurrences")
    if kind in NETWORKS:
        return []
    if kind == RECURRENT:
        return [recurrence(sizes)]
    if kind == CONVOLUTION:
        return [Recurrence.convolution(sizes.width, sizes("conv_L_cache"))]
    if kind == BOTH:
        return [attention(sizes, ATTENTION), recurrence(sizes)]
    if kind in (ATTENTION, SLIDING, CHUNKED):
        return [attention(sizes, kind)]
    raise wrong("config", f"{sizes.name} with layers of the kind {kind!r}", "attention, windows and recurrences")


def attention(sizes: Sizes, kind: str) -> Mixer:
    """Grouped or latent attention."""
    if sizes.has("kv_lora_rank"):
        return LatentAttention(
            *(sizes.width, sizes.heads, sizes("q_lora_rank", default=0), sizes("kv_lora_rank")),
            *(sizes("qk_nope_head_dim"), sizes("qk_rope_head_dim"), sizes("v_head_dim")),
        )
    one = getattr(sizes.config, "multi_query", False) and not getattr(sizes.config, "new_decoder_architecture", False)
    kv_heads = 1 if one else sizes("num_key_value_heads", "num_kv_heads", default=sizes.heads)
    window = {SLIDING: ("sliding_window",), CHUNKED: ("attention_chunk_size",)}.get(kind)
    return GroupedAttention(
        *(sizes.width, sizes.heads, kv_heads, sizes("head_dim", default=sizes.width // sizes.heads)),
        window=None if window is None else sizes(*window),
        chunked=kind == CHUNKED,
        gated=sizes.config.model_type.startswith(("qwen3_next", "qwen3_5")),
    )


def recurrence(sizes: Sizes) -> Recurrence:
    """The recurrence whose sizes the configuration has.

    Raises:
        ValueError: none that is known.
    """
    width = sizes.width
    if sizes.has("linear_num_value_heads", "linear_num_key_heads"):
        heads = sizes("linear_num_key_heads"), sizes("linear_num_value_heads")
        dims = sizes("linear_key_head_dim"), sizes("linear_value_head_dim")
        return Recurrence.delta(width, *heads, *dims, sizes("linear_conv_kernel_dim"))
    if sizes.config.model_type.startswith("minimax"):
        return Recurrence.lightning(width, sizes.heads, sizes("head_dim", default=width // sizes.heads))
    state, kernel = sizes("state_size", "ssm_state_size", "mamba_d_state"), sizes("conv_kernel", "mamba_d_conv")
    inner = sizes("mamba_d_ssm", default=sizes("expand", "mamba_expand", default=2) * width)
    own = "num_attention_heads" not in sizes.config.to_dict()  # then heads and their dimension are the recurrence's
    names = ("mamba_n_heads", "mamba_num_heads", *(["num_heads"] if own else []))
    if heads := sizes(*names, default=0):
        dim = sizes("mamba_d_head", "mamba_head_dim", *(["head_dim"] if own else []), default=inner // heads)
        return Recurrence.mamba2(width, heads, dim, sizes("mamba_n_groups", "n_groups"), state, kernel)
    rank = sizes("time_step_rank", "mamba_dt_rank", default=-(-width // 16))
    return Recurrence.mamba(width, inner, state, rank, kernel)


def networks_of(layers: list[Sizes], kinds: list[str], matrices: int) -> list[Network]:
    """The network of each layer that has one."""
    if any(kind in NETWORKS for kind in kinds):
        with_experts = {i: kind == "moe" for i, kind in enumerate(kinds) if kind in NETWORKS}
    elif not layers[0].has("num_attention_heads") and not layers[0].has("n_head"):
        with_experts = {}
    else:
        with_experts = {i: each.sparse(i) for i, each in enumerate(layers)}
    return [(experts if sparse else plain)(layers[i], matrices) for i, sparse in with_experts.items()]


def experts(sizes: Sizes, matrices: int) -> Network:
    """The experts of a layer, with the network beside them."""
    small = sizes("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
    shared = sizes("n_shared_experts", "num_shared_experts", default=sizes.has("intermediate_size_mlp")) * small
    wide = "moe_shared_expert_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"
    count, active = sizes(*EXPERTS), sizes("num_experts_per_tok", "moe_topk")
    return Network(sizes.width, small, count, active, sizes(*wide, default=shared), matrices)


def plain(sizes: Sizes, matrices: int) -> Network:
    """The network of a layer without experts."""
    return Network(sizes.width, dense_inner(sizes), matrices=matrices)


def dense_inner(sizes: Sizes) -> int:
    """Inner width of a network that is no expert."""
    if sizes.has("shared_intermediate_size") and not sizes("num_local_experts", default=0):
        return sizes("shared_intermediate_size")
    inner = sizes("intermediate_size_mlp", "intermediate_size", "n_inner", "ffn_hidden_size", default=4 * sizes.width)
    if getattr(sizes.config, "block_auto_adjust_ff_dim", False):  # LFM2 counts two matrices of three
        inner = int(sizes.config.block_ffn_dim_multiplier * (2 * inner // 3))
        inner = -(-inner // sizes("block_multiple_of")) * sizes("block_multiple_of")
    return inner
