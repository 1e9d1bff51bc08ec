"""What is left of the past once only the next rows of A are needed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from regard.core.errors import wrong

UNCOUNTED = ("seen", "keys", "key_mask")
"""Bookkeeping of a state: how many tokens there were, and which are padding."""


@dataclass(frozen=True)
class State:
    """The base of every decoding state: immutable, one row per sequence of the batch.

    Subclasses add their tensors as fields, each with the batch as its first axis; a field may also be a state, or
    a tuple of states or tensors.

    Args:
        seen: ``(batch,)`` int64, how many real tokens each sequence has seen: the position of its next token.
    """

    seen: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state by its name, those of a tuple by its name and their place in it."""
        found: dict[str, Tensor] = {}
        for name, value in ((f.name, getattr(self, f.name)) for f in fields(self)):
            if isinstance(value, Tensor):
                found[name] = value
            elif isinstance(value, tuple):
                found |= {f"{name}.{place}": x for place, x in enumerate(value) if isinstance(x, Tensor)}
        return found

    @property
    def parts(self) -> list[State]:
        """Every state inside of this one, whether a field or in a tuple of them."""
        values = (getattr(self, f.name) for f in fields(self))
        flat = (part for value in values for part in (value if isinstance(value, tuple) else (value,)))
        return [part for part in flat if isinstance(part, State)]

    @property
    def bytes(self) -> int:
        """Bytes of what grows or stays per sequence; bookkeeping (`UNCOUNTED`) is left out."""
        own = sum(t.numel() * t.element_size() for name, t in self.tensors.items() if name not in UNCOUNTED)
        return own + sum(part.bytes for part in self.parts)

    def select(self, index: Tensor) -> Self:
        """The state of the sequences ``index``: what beam search and batch changes need."""
        return type(self)(**{name: picked(value, index) for name, value in self.__dict__.items()})


def picked(value: Any, index: Tensor) -> Any:
    """The rows ``index`` of whatever a state holds; what is no tensor or state is shared."""
    if isinstance(value, Tensor):
        return value.index_select(0, index)
    if isinstance(value, State):
        return value.select(index)
    return tuple(picked(part, index) for part in value) if isinstance(value, tuple) else value


def count_new(state: State, keys: Tensor | None, new: int, batch: int) -> tuple[Tensor, Tensor]:
    """``(positions (batch, new), seen (batch,))``: where new tokens stand after the old ones, padding not counted."""
    if state.seen.shape[0] != batch:
        raise wrong("state", f"a batch of {state.seen.shape[0]}", f"the batch of q, {batch}")
    if keys is None:
        steps = torch.arange(new, device=state.seen.device).expand(batch, new)
        return state.seen[:, None] + steps, state.seen + new
    if keys.dtype != torch.bool or tuple(keys.shape) != (batch, new):
        raise wrong("keys", f"{keys.dtype} of shape {tuple(keys.shape)}", f"bool of shape {(batch, new)}")
    positions = state.seen[:, None] + (keys.cumsum(1) - 1).clamp(min=0)
    return positions, state.seen + keys.sum(1)
