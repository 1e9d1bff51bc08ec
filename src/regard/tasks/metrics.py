"""How well a model answers: the share of answers that it would have predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from regard.core.errors import wrong
from regard.tasks.example import Task, batch


def accuracy(
    model: Any, task: Task, lengths: Sequence[int], *, samples: int = 32, seed: int = 0, batch_size: int = 8
) -> dict[int, float]:
    """Share of answer tokens that are the model's most likely next token, per length.

    model: a Hugging Face causal language model (anything that maps `input_ids` (b, n) to `.logits` (b, n, vocabulary)).
    samples: examples per length; the same seed gives the same examples to every model.
    """
    return {length: _accuracy_at(model, task, length, samples, seed, batch_size) for length in lengths}


@torch.no_grad()
def _accuracy_at(model: Any, task: Task, length: int, samples: int, seed: int, batch_size: int) -> float:
    if samples < 1 or batch_size < 1:
        raise wrong("samples, batch_size", f"{samples}, {batch_size}", "at least 1 of each")
    generator = Generator().manual_seed(seed)
    hits = [
        correct(model, *batch(task, generator, min(batch_size, samples - done), length))
        for done in range(0, samples, batch_size)
    ]
    return torch.cat(hits).float().mean().item()


@torch.no_grad()
def correct(model: Any, ids: Tensor, answers: Tensor) -> Tensor:
    """For every answer token of a batch, in reading order: was it predicted? (bool, one entry an answer)"""
    device = next(model.parameters()).device
    guesses = model(input_ids=ids.to(device), use_cache=False).logits[:, :-1].argmax(-1).cpu()  # (b, n - 1)
    asked = answers[:, 1:]
    return guesses[asked] == ids[:, 1:][asked]
