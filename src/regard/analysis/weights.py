"""The weights of each head of a Transformers model, as analyses without a text read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.hosts.sites import blocks_of

OUTPUTS = ("o_proj", "out_proj", "dense")


@dataclass(frozen=True)
class HeadWeights:
    """One layer's weights, ``c`` channels of the residual stream; head h has key head ``h // (heads / kv_heads)``.

    Args:
        q: ``(heads, d, c)``. k: ``(kv_heads, d, c)``. v: ``(kv_heads, e, c)``. o: ``(heads, c, e)``.
        norm: what stands before the attention.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    norm: nn.Module

    def shared(self, x: Tensor) -> Tensor:
        """Weights of key heads, for every head."""
        return x.repeat_interleave(len(self.q) // len(x), 0)


@torch.no_grad()
def head_weights(model: Any) -> list[HeadWeights]:
    """The weights of all layers.

    Raises:
        ValueError: a model whose attention has no linear ``q_proj``, ``k_proj``, ``v_proj`` and output, or whose blocks
            have no norm before it.
    """
    text, found = model.config.get_text_config(), []
    for block in blocks_of(model):
        attention = block.module.get_submodule(block.attention[0].removeprefix(f"{block.name}."))
        out = next((name for name in OUTPUTS if hasattr(attention, name)), "")
        named = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj", out)]
        parts = [part for part in named if isinstance(part, nn.Linear)]
        norm = next((module for name, module in block.module.named_children() if "norm" in name), None)
        if norm is None or len(parts) < len(named):
            raise wrong(
                "model", f"{block.name} without q_proj, k_proj, v_proj, output or norm", "a model that has them"
            )
        size = getattr(attention, "head_dim", None) or text.hidden_size // text.num_attention_heads
        q, k, v = (part.weight.detach().unflatten(0, (-1, size)) for part in parts[:3])
        o = parts[3].weight.detach().unflatten(1, (len(q), -1)).transpose(0, 1)
        found.append(HeadWeights(q, k, v, o, norm))
    if not found:
        raise wrong("model", type(model).__name__, "one with a list of blocks that hold attention")
    return found


def unembedding(model: Any) -> Tensor:
    """``(vocabulary, c)``: the rows of logits, with the weight of the last norm in them.

    Raises:
        ValueError: a model without such a norm or without logits.
    """
    head = model.get_output_embeddings()
    norm = getattr(model.base_model, "norm", None)
    if head is None or not isinstance(norm, nn.Module):
        raise wrong("model", type(model).__name__, "one whose last norm and logits are known by name")
    return head.weight.detach() * gain_of(norm, head.weight.shape[1])


@torch.no_grad()
def gain_of(norm: nn.Module, width: int) -> Tensor:
    """``(width,)``: what a norm multiplies each normalised channel with.

    Measured on channels of mean zero and much larger than its epsilon, so that it is 1 + w where a norm computes that
    of its weight w, as Gemma's does; biases cancel.
    """
    like = next(iter(norm.parameters()), torch.zeros(()))
    signs = torch.ones(width, device=like.device)
    signs[1::2] = -1
    signs[width - width % 2 :] = 0
    found = torch.ones(width, device=like.device)
    for given in (signs, signs.roll(1)):
        given = given / given.square().mean().sqrt()
        large = (100 * given).to(like.dtype)
        shown = (norm(large).float() - norm(-large).float()) / 2
        found = torch.where(given == 0, found, shown / given)
    return found.to(like.dtype)
