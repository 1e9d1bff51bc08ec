"""Transformers models made deeper by copies of blocks, whose heads read memories of their own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from regard.core.errors import wrong
from regard.hosts.attention_interface import host, label
from regard.hosts.linear_layers import filled
from regard.hosts.sites import blocks_of, parent
from regard.networks.midus import HeadMemory, Nothing

KEY = "regard_memories"
"""Where a model's configuration says which of its blocks are memories."""


@dataclass(frozen=True)
class Memories:
    """Which blocks of a deeper model are memories, and how large these are.

    Args:
        blocks: their indices in it. keys, top, latent: see `networks.midus.HeadMemory`.
    """

    blocks: tuple[int, ...]
    keys: int = 16
    top: int = 8
    latent: int = 32


def deepened(
    model: Any, after: Sequence[int], keys: int = 16, top: int = 8, latent: int = 32, seed: int = 0
) -> PreTrainedModel:
    """A deeper copy of a Transformers model that says what it does: behind some blocks a memory block that gives zeros.

        M(x) = x + memory(z),   z the heads' outputs of a copy of the block's attention

    The blocks that come in have no network, and a memory in the place of the attention's output matrix; all of the
    copy can be trained on, generates by Transformers' own means, and is read again by `load`.

    Args:
        after: indices of the blocks that one follows. keys, top, latent: of the memories, see
            `networks.midus.HeadMemory`. seed: of their weights.

    Raises:
        ValueError: indices of no blocks, or one twice; blocks without a plain ``mlp``, or attention without ``o_proj``.

    Paper: MIDUS, arXiv 2512.13751.
    """
    found = copy.deepcopy(host(model))
    stack = stack_of(found)
    if not after or len(set(after)) < len(after) or any(not 0 <= place < len(stack) for place in after):
        raise wrong("after", str(list(after)), f"some of 0 to {len(stack) - 1}, each once")
    origins = [place for place in range(len(stack)) for _ in range(1 + (place in after))]
    blocks = tuple(place for place in range(1, len(origins)) if origins[place] == origins[place - 1])
    layers = [stack[place] for place in origins]
    for place in blocks:
        layers[place] = copy.deepcopy(layers[place])
    while len(stack):
        del stack[-1]
    stack.extend(layers)
    told(found.config, origins)
    memorised(found, Memories(blocks, keys, top, latent), seed)
    for place in blocks:
        with torch.no_grad():
            attention_of(found, place).o_proj.expand.zero_()
    return found


def memorised(model: Any, memories: Memories, seed: int = 0) -> None:
    """Makes some blocks of a model memories, in place, and says so in its configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for place, block in enumerate(stack_of(model)):
            for part in block.modules():
                if hasattr(part, "layer_idx"):
                    part.layer_idx = place  # pyright: ignore[reportArgumentType]
            if place not in memories.blocks:
                continue
            attention = attention_of(model, place)
            old = getattr(attention, "o_proj", None)
            network = getattr(block, "mlp", None)
            if not isinstance(old, nn.Linear) or network is None or hasattr(network, "experts"):
                raise wrong("model", f"a {label(model)}", "blocks with a plain mlp, and attention with an o_proj")
            heads, weight = old.in_features // attention.head_dim, old.weight
            sizes = {"keys": memories.keys, "top": memories.top, "latent": memories.latent}
            memory = HeadMemory(old.out_features, heads, attention.head_dim, **sizes)
            attention.o_proj, block.mlp = memory.to(weight.device, weight.dtype), Nothing()
    setattr(model.config, KEY, asdict(memories))


def stack_of(model: Any) -> nn.ModuleList:
    """The list of a model's blocks.

    Raises:
        ValueError: blocks in several lists, or with several attentions.
    """
    blocks = list(blocks_of(host(model)))
    lists = {parent(block.name) for block in blocks}
    if len(lists) != 1 or any(len(block.attention) > 1 for block in blocks):
        raise wrong("model", f"a {label(model)}, with blocks in {sorted(lists)}", "one list, of one attention a block")
    found: Any = host(model).get_submodule(lists.pop())
    return found


def attention_of(model: Any, place: int) -> Any:
    """The attention module of a block."""
    block = list(blocks_of(host(model)))[place]
    return model.get_submodule(block.attention[0])


def told(config: Any, origins: Sequence[int]) -> None:
    """A configuration of as many blocks as there are, each of the kind of the block that it is of."""
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[place] for place in origins]
    config.num_hidden_layers = len(origins)


def load(folder: str | Path, **given: Any) -> PreTrainedModel:
    """A model with memories as its ``save_pretrained`` wrote it, in evaluation mode.

    Args:
        folder: of the model. given: further arguments of ``from_pretrained`` of the model's configuration.

    Raises:
        ValueError: a model without memories, or weights that are not its own.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, **given)
    memories = getattr(config, KEY, None)
    if not isinstance(memories, dict):
        raise wrong("folder", str(folder), f"that of a model with memories, whose config.json has {KEY}")
    model: Any = AutoModelForCausalLM.from_config(config)
    memorised(model, Memories(**{**memories, "blocks": tuple(memories["blocks"])}))
    return filled(model, folder)
