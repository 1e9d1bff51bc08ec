"""Squashes: from any number to a factor in a range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Squashing = Callable[[Tensor, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Squash:
    """A function of numbers and of the dimensions that are positions, the range and the sums of what it gives."""

    function: Squashing
    low: float = 0.0
    high: float = 1.0
    sums: Literal["space"] | None = None


def over_space(numbers: Tensor, positions: tuple[int, ...]) -> Tensor:
    """Softmax over all positions together."""
    if not positions:
        return torch.ones_like(numbers)
    first = positions[0]
    return torch.softmax(numbers.flatten(first), first).unflatten(first, numbers.shape[first:])


SQUASHES: dict[str, Squash] = {
    "sigmoid": Squash(lambda numbers, _: torch.sigmoid(numbers)),
    "hard_sigmoid": Squash(lambda numbers, _: F.hardsigmoid(numbers)),
    "softmax": Squash(over_space, sums="space"),
    "tanh": Squash(lambda numbers, _: torch.tanh(numbers), low=-1.0),
}
