"""How a next token is drawn from its logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from regard.core.errors import wrong


@dataclass(frozen=True)
class Sampling:
    """The most likely token, or one drawn by its probability among the likely ones.

    Args:
        temperature: divides the logits; 0 takes the most likely token. top_k: draw among so many most likely tokens.
        top_p: draw among the fewest most likely tokens whose probabilities add up to this. generator: of the draws.

    Raises:
        ValueError: a temperature below 0, ``top_k`` below 1, ``top_p`` outside of (0, 1].
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    generator: Generator | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise wrong("temperature", str(self.temperature), "0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise wrong("top_k", str(self.top_k), "at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise wrong("top_p", str(self.top_p), "above 0, at most 1")

    def __call__(self, logits: Tensor) -> Tensor:
        """``(b,)`` ids drawn from ``logits (b, vocabulary)``."""
        if self.temperature == 0:
            return logits.argmax(-1)
        ordered, ids = (logits.float() / self.temperature).sort(dim=-1, descending=True)
        if self.top_k is not None:
            ordered[:, self.top_k :] = -torch.inf
        chances = torch.softmax(ordered, dim=-1)
        if self.top_p is not None:
            before = chances.cumsum(-1) - chances
            chances = chances.masked_fill(before >= self.top_p, 0)
        drawn = torch.multinomial(chances, 1, generator=self.generator)
        return ids.gather(1, drawn)[:, 0]
