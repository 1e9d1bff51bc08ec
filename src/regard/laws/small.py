"""The small Llama with random weights on which the laws of what is done to a model are held."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 6, 3, 4, 29


@cache
def llama(layers: int) -> Any:
    """A model with grouped heads, its weights large enough that attention is far from even; laws leave it as it is."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": HEADS * HEAD_DIM,
        "intermediate_size": 31,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
    }
    more: dict[str, Any] = {
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        found = LlamaForCausalLM(LlamaConfig(**sizes, **more, pad_token_id=0, bos_token_id=1, eos_token_id=2))
        for parameter in found.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return found.eval()


def tokens(*shape: int) -> Tensor:
    """Token ids that are no special ones."""
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(0))
