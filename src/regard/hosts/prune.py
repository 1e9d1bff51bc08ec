"""A model without the attention of some of its layers, which so keep no keys and values either."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regard.core.errors import wrong
from regard.hosts import caches
from regard.hosts.attention_interface import label

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj")


class NoAttention(nn.Module):
    """Stands in an attention's place, adds nothing to the residual stream, and caches one byte for each token.

    Args:
        layer_idx: of the layer.
    """

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Zeros; the cache is told how many tokens came, as masks and positions are made by its layers' lengths."""
        cache = next(caches.found((*args, *kwargs.values())), None)
        if cache is not None:
            mark = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1, dtype=torch.int8)
            cache.update(mark, mark[..., :0], self.layer_idx)
        return torch.zeros_like(hidden_states), None


class Pruned(AbstractContextManager["Pruned"]):
    """A model without some attention layers: for the length of a ``with`` block, or from `install` to `remove`.

    Args:
        model: the host. layers: which go, ascending. why: how they were chosen: a number for each layer, the lowest go.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[int], why: Sequence[float] = ()) -> None:
        self.model, self.layers, self.why = model, tuple(layers), tuple(why)
        self.places = attention_layers(model)
        if not self.layers or not set(self.layers) < set(range(len(self.places))):
            what = f"{list(self.layers)} of {len(self.places)} layers"
            raise wrong("layers", what, "some of them, and not all")
        self.taken: dict[int, nn.Module] = {}

    def install(self) -> Pruned:
        """Takes the layers out, to stay out until `remove`.

        Raises:
            RuntimeError: one of them is out already.
        """
        found = attention_layers(self.model)
        if any(isinstance(found[layer][2], NoAttention) for layer in self.layers):
            raise wrong("model", f"{label(self.model)}, which is pruned already", "one that is whole", RuntimeError)
        for layer in self.layers:
            parent, name, module = found[layer]
            self.taken[layer] = module
            setattr(parent, name, NoAttention(layer).train(module.training))
        return self

    def remove(self) -> None:
        """Puts them back."""
        for layer, module in self.taken.items():
            parent, name, _ = self.places[layer]
            setattr(parent, name, module)
        self.taken = {}

    def __enter__(self) -> Pruned:
        return self if self.taken else self.install()

    def __exit__(self, *exception: object) -> None:
        self.remove()


def attention_layers(model: PreTrainedModel) -> list[tuple[nn.Module, str, nn.Module]]:
    """``(the block, its name for the attention, the attention)`` of every layer of a decoder.

    Raises:
        ValueError: blocks whose attention has no query, key, value and output matrices of its own.
    """
    found = []
    for block in model.modules():
        for name, module in block.named_children():
            if isinstance(module, NoAttention) or all(hasattr(module, matrix) for matrix in MATRICES):
                found.append((block, name, module))
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    if [getattr(module, "layer_idx", None) for _, _, module in found] != list(range(layers)):
        what = f"{label(model)}, of whose {layers} layers {len(found)} have attention with {', '.join(MATRICES)}"
        raise wrong("model", what, "a decoder with one such attention in each layer, as Llama, Mistral and Qwen are")
    return found
