"""Sums of log decays whose differences keep what is small after what is large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

CLOSED = 2048.0
"""exp of its negative times any finite number is zero in every precision: a gate that far down is shut."""


@dataclass(frozen=True)
class Sums:
    """Running sums of log decays, as integers and what they leave.

    A difference of two plain sums loses the weak decays between them when strong ones lie before both. Here the
    integers' sums are exact, so that only the rest is rounded, and a gate that is shut counts `CLOSED`, −inf included.

    Args:
        whole, rest: of one shape, which indexing cuts alike; rest changes by at most 1/2 from token to token.
    """

    whole: Tensor
    rest: Tensor

    @classmethod
    def of(cls, log_decay: Tensor, axis: int) -> Sums:
        """Along ``axis``, each token's own decay included; at most 8,192 tokens in single precision."""
        log_decay = log_decay.clamp(min=-CLOSED)
        whole = log_decay.detach().round()
        return cls(whole.cumsum(axis), (log_decay - whole).cumsum(axis))

    def __getitem__(self, index: Any) -> Sums:
        return Sums(self.whole[index], self.rest[index])

    def __sub__(self, earlier: Sums) -> Tensor:
        return (self.whole - earlier.whole).add_(self.rest).sub_(earlier.rest)

    @property
    def total(self) -> Tensor:
        """The sums as numbers."""
        return self.whole + self.rest
