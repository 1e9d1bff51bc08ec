"""What the heads of the small model do: induction scores, sink mass, and what is lost without a head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor

from regard.tasks import Copy, batch


@torch.no_grad()
def attention_maps(model: Any, ids: Tensor) -> Tensor:
    """All attention weights, (layers, b, heads, n, n), by the model's plain definition."""
    kind = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        maps = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    finally:
        model.set_attn_implementation(kind)
    return torch.stack(maps)


def induction_scores(model: Any, block: int = 61, size: int = 8, seed: int = 0) -> Tensor:
    """Mean attention from a token's second occurrence to the token after its first, (layers, heads).

    Measured on random blocks of `block` random ids, repeated once behind the beginning token.
    """
    maps = attention_maps(model, random_repeats(model, block, size, seed)[0])
    rows = torch.arange(block + 1, 2 * block)  # second occurrences whose successor was seen
    return maps[..., rows, rows - block + 1].mean(dim=(1, 3))


def sink_mass(model: Any, ids: Tensor) -> Tensor:
    """Mean attention that each head gives to the first token, from all later ones, (layers, heads)."""
    return attention_maps(model, ids)[..., 1:, 0].mean(dim=(1, 3))


@contextmanager
def without_head(model: Any, layer: int, head: int) -> Iterator[None]:
    """The model with one head's output set to zero before the output projection; as before afterwards."""
    projection = model.model.layers[layer].self_attn.o_proj
    width = projection.in_features // model.config.num_attention_heads

    def silence(module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        values = inputs[0].clone()
        values[..., head * width : (head + 1) * width] = 0
        return (values,)

    handle = projection.register_forward_pre_hook(silence)
    try:
        yield
    finally:
        handle.remove()


def random_repeats(model: Any, block: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Blocks of random ids, repeated once behind the beginning token: ids and answers, (size, 2 · block + 1)."""
    symbols = range(1, model.config.vocab_size)
    ids, answers = batch(Copy(symbols, bos=0), Generator().manual_seed(seed), size, 2 * block + 1)
    device = next(model.parameters()).device
    return ids.to(device), answers.to(device)
