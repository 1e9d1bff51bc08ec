"""Heads taken out of a model for good: their weights are gone, and what is left is as if they had been silenced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regard.core.errors import wrong
from regard.hosts.attention_interface import label
from regard.hosts.prune import NoAttention, attention_layers


def remove_heads(model: PreTrainedModel, heads: Mapping[int, Sequence[int]]) -> int:
    """Cuts the queries and the output of some heads out of a decoder's matrices, in place, and says how many numbers
    are gone.

    Key and value heads go where no head that is left reads them. Where unlike numbers of heads are left to the key
    heads of a layer, each head that is left gets keys and values of its own, as the model's attention can only share
    evenly: the layer's cache and matrices may then be larger than they were.

    Args:
        model: with one attention of ``q_proj``, ``k_proj``, ``v_proj``, ``o_proj`` in each layer, as Llama's. heads:
            by layer.

    Raises:
        ValueError: a head that is not there, all heads of a layer (`regard.prune` takes whole layers), or a model
            without such attention.
    """
    layers, before = attention_layers(model), count(model)
    for layer, some in heads.items():
        if not 0 <= layer < len(layers) or isinstance(layers[layer][2], NoAttention):
            raise wrong("heads", f"layer {layer}", f"layers of {label(model)} with attention, up to {len(layers) - 1}")
        check(layers[layer][2], layer, some)
    for layer, some in heads.items():
        cut(layers[layer][2], set(some))
    return before - count(model)


def count(model: nn.Module) -> int:
    """How many parameters there are."""
    return sum(parameter.numel() for parameter in model.parameters())


def check(attention: Any, layer: int, some: Sequence[int]) -> None:
    """Refuses heads that are not there, and all of them."""
    total = attention.q_proj.out_features // attention.head_dim
    if not set(some) < set(range(total)):
        raise wrong("heads", f"{sorted(some)} of layer {layer}", f"some of 0 to {total - 1}, and not all")


def cut(attention: Any, out: set[int]) -> None:
    """Takes heads out of one attention."""
    size = attention.head_dim
    total, groups = (part.out_features // size for part in (attention.q_proj, attention.k_proj))
    share = total // groups
    left = [head for head in range(total) if head not in out]
    counts = [sum(1 for head in left if head // share == group) for group in range(groups)]
    used = [group for group in range(groups) if counts[group]]
    even = len({counts[group] for group in used}) == 1
    keys = used if even else [head // share for head in left]
    attention.q_proj = selected(attention.q_proj, channels(left, size), 0)
    attention.o_proj = selected(attention.o_proj, channels(left, size), 1)
    for name in ("k_proj", "v_proj"):
        setattr(attention, name, selected(getattr(attention, name), channels(keys, size), 0))
    attention.num_key_value_groups = len(left) // len(keys)


def channels(heads: Sequence[int], size: int) -> Tensor:
    """The channels of heads, in order."""
    return torch.cat([torch.arange(size) + head * size for head in heads])


def selected(part: nn.Linear, of: Tensor, axis: int) -> nn.Linear:
    """A linear layer with some of its outputs (axis 0) or inputs (axis 1)."""
    weight, of = part.weight.data, of.to(part.weight.device)
    bias = None if part.bias is None else part.bias.data
    made = nn.Linear(1, 1, bias is not None, device=weight.device, dtype=weight.dtype)
    made.weight = nn.Parameter(weight.index_select(axis, of), part.weight.requires_grad)
    made.out_features, made.in_features = made.weight.shape
    if bias is not None:
        kept = bias if axis else bias.index_select(0, of)
        made.bias = nn.Parameter(kept.clone(), part.weight.requires_grad)
    return made.train(part.training)
