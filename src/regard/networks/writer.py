"""The base of autoregressive decoders that read a source at every step: teacher forcing, beam search, alignments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.networks.base import Network

Valid = Callable[[Tensor], Tensor]
"""Which tokens may come next, ``(b, vocabulary)`` bool, after those that were chosen, ``(b, t)``."""


@dataclass(frozen=True)
class Encoded:
    """A source that has been read: ``keys (b, m, width)``, ``end (b, width)`` of it, and where it is padding."""

    keys: Tensor
    end: Tensor
    layout: Layout

    def select(self, rows: Tensor) -> Encoded:
        """The sources of these rows of the batch."""
        mask = self.layout.key_mask
        return Encoded(self.keys[rows], self.end[rows], Layout(key_mask=None if mask is None else mask[rows]))


class Remembered:
    """The base of a decoder's state: a frozen dataclass of tensors whose first axis is the batch."""

    def select(self, rows: Tensor) -> Self:
        """That of these rows of the batch."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))  # pyright: ignore


class Writer(Network):
    """The base of networks that write tokens one after the other, each from a source and the tokens before it.

    A subclass sets `target`, the size of its vocabulary, whose number is also the token that comes before the first,
    and writes `encode`, `start` and `step`.
    """

    target: int

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> Encoded:
        """The keys of a source, and its end."""
        raise NotImplementedError

    def start(self, encoded: Encoded) -> Any:
        """The state before the first step, which has `select`."""
        raise NotImplementedError

    def step(self, state: Any, previous: Tensor, encoded: Encoded) -> tuple[Any, Tensor]:
        """The state and the logits ``(b, target)`` after the tokens ``previous (b,)``."""
        raise NotImplementedError

    def states(self, encoded: Encoded, target: Tensor) -> tuple[list[Any], Tensor]:
        """The state after each step, and the logits ``(b, n, target)``, with the target as what was written."""
        state, states, steps = self.start(encoded), [], []
        first = torch.full_like(target[:, :1], self.target)
        for previous in torch.cat([first, target[:, :-1]], 1).unbind(1):
            state, logits = self.step(state, previous, encoded)
            states.append(state)
            steps.append(logits)
        return states, torch.stack(steps, 1)

    def forward(self, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.states(self.encode(source, lengths), target)[1]

    def looked(self, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """The ``weights`` of all states in one map, for networks whose states keep what they looked at."""
        with torch.no_grad():
            states, _ = self.states(self.encode(source, lengths), target)
        return {"reader": torch.stack([state.weights for state in states], 1)[:, None]}

    def alignment(self, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """A of every step that writes the target, ``(b, n, m)``.

        Raises:
            ValueError: the network reads nothing.
        """
        with torch.no_grad():
            maps = self.intermediates(source, target, lengths)
        if not maps:
            raise wrong("reader", "None", "a network that reads its source")
        return torch.cat(list(maps.values()), 2)[:, 0]

    @torch.no_grad()
    def generate(
        self, source: Tensor, steps: int, lengths: Tensor | None = None, beam: int = 1, valid: Valid | None = None
    ) -> Tensor:
        """The likeliest tokens ``(b, steps)`` that a beam finds; one of width 1 takes the best at each step.

        Args:
            beam: how many sequences are kept. valid: what may come next; at least one token always.
        """
        if beam < 1 or beam > self.target:
            raise wrong("beam", str(beam), f"1 to {self.target}, the vocabulary")
        encoded, b = self.encode(source, lengths), source.shape[0]
        state, rows = self.start(encoded), torch.arange(b, device=source.device)
        score = encoded.keys.new_zeros(b, 1)
        chosen = torch.zeros(b, 0, dtype=torch.int64, device=source.device)
        previous = torch.full((b,), self.target, device=source.device)
        for _ in range(steps):
            state, logits = self.step(state, previous, encoded)
            if valid is not None:
                logits = logits.masked_fill(~valid(chosen), -torch.inf)
            total = (score.flatten()[:, None] + logits.log_softmax(-1)).unflatten(0, (b, -1)).flatten(1)
            score, index = total.topk(min(beam, total.shape[1]))
            width = chosen.shape[0] // b
            rows = (torch.arange(b, device=source.device)[:, None] * width + index // self.target).flatten()
            previous = (index % self.target).flatten()
            chosen = torch.cat([chosen[rows], previous[:, None]], 1)
            state, encoded = state.select(rows), encoded.select(rows)
        return chosen.unflatten(0, (b, -1))[:, 0]
