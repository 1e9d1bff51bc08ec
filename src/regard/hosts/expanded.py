"""Cross-attention of encoder–decoders whose queries are expanded, so that no keys and values of the source are kept."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regard.core.errors import wrong
from regard.hosts.attention_interface import label

CROSS = ("encoder_attn", "EncDecAttention")
"""How Transformers calls the cross-attention of a decoder's block."""
MATRICES = (("q_proj", "k_proj", "v_proj", "out_proj"), ("q", "k", "v", "o"))


class ExpandedCross(AbstractContextManager["ExpandedCross"]):
    """A model whose decoder attends to the encoder's states themselves: for a ``with`` block, or until `remove`.

    Args:
        model: an encoder–decoder of Transformers.

    Raises:
        ValueError: it has no cross-attention of four matrices, such as one with norms of queries and keys.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        named = [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] in CROSS]
        self.calls = {name: Expanded(module) for name, module in named if matrices(module) is not None}
        if not named or len(self.calls) < len(named):
            wanted = "an encoder–decoder whose cross-attention is four matrices, such as BART, T5, Whisper or Marian"
            raise wrong("model", label(model), wanted)

    def install(self) -> ExpandedCross:
        """Puts it in.

        Raises:
            RuntimeError: it is in.
        """
        for name, call in self.calls.items():
            if "forward" in vars(call.module):
                raise wrong("model", f"{name}, whose forward is replaced already", "one of its own", RuntimeError)
        for call in self.calls.values():
            call.module.forward = call
        return self

    def remove(self) -> None:
        """Leaves the model as it was."""
        for call in self.calls.values():
            if vars(call.module).get("forward") is call:
                del call.module.forward

    def __enter__(self) -> ExpandedCross:
        return self.install()

    def __exit__(self, *exception: object) -> None:
        self.remove()


class Expanded:
    """The forward of one cross-attention, over states in the place of keys and values.

        q_h = (x W^Q_h + b^Q_h) W^K_hᵀ,   y = Σ_h (A_h H W^V_h + b^V_h) W^O_h + b^O

    A key's bias adds the same to all scores of a query, and rows of A have the sum one. The cache is not touched.

    Args:
        module: the cross-attention.
    """

    def __init__(self, module: Any) -> None:
        self.module, self.parts = module, matrices(module)
        self.interface = sys.modules[type(module).__module__].eager_attention_forward

    def __call__(self, hidden_states: Tensor, *given: Any, **kwargs: Any) -> tuple[Any, ...]:
        states: Tensor | None = given[0] if given else kwargs.pop("key_value_states", None)
        if states is None:
            raise wrong("encoder_outputs", "none", "the encoder's states in every call: no cache holds them")
        assert self.parts is not None
        q, k, v, out = self.parts
        module, width = self.module, k.weight.shape[1]
        if module.training and module.dropout:
            raise wrong("model", "one in training, whose weights are dropped", "model.eval(): rows keep their sum")
        heads = module.num_heads if hasattr(module, "num_heads") else module.n_heads
        queries = q(hidden_states).unflatten(2, (heads, -1))
        queries = torch.einsum("bnhd,hdc->bhnc", queries, k.weight.view(heads, -1, width))
        shared = states[:, None].expand(-1, heads, -1, -1)
        asked = {name: kwargs[name] for name in kwargs if name not in ("mask", "attention_mask", "cache", *PAST)}
        mask, theirs = kwargs.get("attention_mask", kwargs.get("mask")), "mask" in kwargs
        if theirs and asked.get("position_bias") is None:
            asked["position_bias"] = queries.new_zeros(1, heads, queries.shape[2], states.shape[1])
        call = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, self.interface)
        found, weights = call(module, queries, shared, shared, mask, dropout=0.0, scaling=module.scaling, **asked)
        found = torch.einsum("bnhc,hdc->bnhd", found, v.weight.view(heads, -1, width)).flatten(2)
        found = out(found if v.bias is None else found + v.bias)
        return (found, asked["position_bias"], weights) if theirs else (found, weights)


PAST = ("past_key_values", "past_key_value", "layer_head_mask", "use_cache", "output_attentions")
"""What a cross-attention may be given that its attention function is not."""


def matrices(module: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear] | None:
    """The matrices of queries, keys, values and outputs; None where that is not all that there is."""
    for names in MATRICES:
        found = [part for part in (getattr(module, name, None) for name in names) if type(part) is nn.Linear]
        if len(found) == 4:
            others = [child for child in module.children() if child not in found]
            return None if others or not hasattr(module, "scaling") else (found[0], found[1], found[2], found[3])
    return None
