"""What a causal language model expects after each token: the likeliest tokens, and how likely the one was that came."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.records.token_texts import BROKEN, text_of

Logits = Callable[[slice], Tensor]
"""The logits ``(rows, vocabulary)`` of some rows of the text."""

BLOCK = 1 << 23
"""Logits that are formed at once: 32 MiB of float32."""
CLOSE = 1e-3
"""How far logits may be off, of the largest, to be those of the model's own pass."""


@dataclass(frozen=True)
class Predictions:
    """The next-token distribution after each token, as far as it is kept.

    Args:
        ids: ``(n, k)`` int32, the likeliest tokens after each, best first. probabilities: ``(n, k)`` float32.
        log_probability: ``(n,)`` float32, of each token given those before it, in nats; NaN for the first.
    """

    ids: Tensor
    probabilities: Tensor
    log_probability: Tensor


@torch.no_grad()
def predictions(logits: Logits, ids: Sequence[int], count: int, vocabulary: int) -> Predictions:
    """The ``count`` likeliest tokens after each token of ``ids``, by blocks of rows."""
    n, count = len(ids), min(count, vocabulary)
    came = torch.full((n,), torch.nan)
    best = torch.empty(n, count, dtype=torch.int32)
    probabilities = torch.empty(n, count)
    size = max(1, BLOCK // vocabulary)
    for first in range(0, n, size):
        rows = slice(first, min(first + size, n))
        logs = logits(rows).float().log_softmax(-1).cpu()
        top = logs.topk(count)
        best[rows], probabilities[rows] = top.indices.int(), top.values.exp()
        after = torch.tensor(ids[rows.start + 1 : rows.stop + 1])
        came[rows.start + 1 : rows.start + 1 + len(after)] = logs[: len(after)].gather(1, after[:, None])[:, 0]
    return Predictions(best, probabilities, came)


def head_of(model: Any, states: Tensor, last: Tensor) -> Logits | None:
    """How the final ``states (1, n, channels)`` become logits; None where no way gives the pass's own ``last`` ones.

    The output embedding is applied as it is, with the cap of Gemma 2, or scaled as in Cohere's or Granite's models.
    """
    head = model.get_output_embeddings()
    with torch.no_grad():
        plain = head(states[0, -1:])
        for way in ways(model.config.get_text_config()):
            if plain.shape == last.shape and (way(plain) - last).abs().max() <= CLOSE * last.abs().max():
                return lambda rows, way=way: way(head(states[0, rows]))
    return None


def ways(config: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    """What configurations do to logits."""
    yield lambda logits: logits
    if cap := getattr(config, "final_logit_softcapping", None):
        yield lambda logits: cap * torch.tanh(logits / cap)
    if scale := getattr(config, "logit_scale", None):
        yield lambda logits: logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        yield lambda logits: logits / divisor


def texts(tokenizer: Any, ids: Sequence[int]) -> dict[str, str]:
    """What each of these tokens reads as within a text; a piece of a character has the vocabulary's name.

    Each is decoded after a plain token, since some tokenizers drop the space before the first word.
    """
    if tokenizer is None:
        return {str(i): f"⟨{i}⟩" for i in ids}
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][:1]
    before, found = text_of(tokenizer, anchor), {}
    for i in ids:
        text = text_of(tokenizer, [*anchor, i])
        fits = text.startswith(before) and BROKEN not in text and len(text) > len(before)
        found[str(i)] = text[len(before) :] if fits else str(tokenizer.convert_ids_to_tokens(int(i)))
    return found
