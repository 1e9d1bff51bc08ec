"""Lookups in another sequence: what cross-attention is for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from regard.core.errors import wrong
from regard.tasks.example import check_length

NOTHING = -100
"""The target of a query that asks nothing."""


@dataclass(frozen=True)
class CrossExample:
    """Two sequences: one that is read and one that asks.

    context: (m,) int64. queries: (n,) int64. targets: (n,) int64, `NOTHING` where nothing is asked.
    """

    context: Tensor
    queries: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Lookup:
    """The context holds pairs ``k_1 v_1 k_2 v_2 …`` with all keys different; a query is a key, its answer the value.

    stream: the two sequences run side by side, so that query i may ask only for pairs that stand before i in the
    context; else each query is one of all keys. vocabulary: half keys, half values, and one id more that asks nothing.
    """

    stream: bool = False
    vocabulary: int = 64

    def __post_init__(self) -> None:
        if self.vocabulary < 4 or self.vocabulary % 2:
            raise wrong("Lookup: vocabulary", str(self.vocabulary), "even and at least 4")

    @property
    def chance(self) -> float:
        """One of the values."""
        return 2 / self.vocabulary

    def sample(self, generator: Generator, length: int) -> CrossExample:
        """A context of ``length`` tokens, and as many queries where they stream, half as many where not."""
        pairs, half = length // 2, self.vocabulary // 2
        check_length(length, 4, "Lookup")
        if pairs > half:
            raise wrong("Lookup: length", f"{length} tokens", f"at most {2 * half}, the keys being different")
        keys = torch.randperm(half, generator=generator)[:pairs]
        values = half + torch.randint(half, (pairs,), generator=generator)
        context = torch.stack([keys, values], dim=1).flatten()
        if not self.stream:
            asked = torch.randperm(pairs, generator=generator)
            return CrossExample(context, keys[asked], values[asked])
        whole = torch.arange(2 * pairs).add(1) // 2  # pairs that are complete at each place
        asked = (torch.rand(2 * pairs, generator=generator) * whole).long().clamp(max=pairs - 1)
        queries = torch.where(whole > 0, keys[asked], self.vocabulary)
        return CrossExample(context, queries, torch.where(whole > 0, values[asked], NOTHING))
