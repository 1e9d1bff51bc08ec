"""What every policy is held against: keep all, keep any; and a cache that is read once for many."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.codec import Codec
from regard.core.policy import Policy, View


@dataclass(frozen=True, kw_only=True)
class Full(Policy):
    """Forgets nothing, whatever the budget."""

    forgets: ClassVar[bool] = False

    def due(self, over: float, decoding: bool) -> bool:
        return False

    def scores(self, view: View) -> Tensor:
        return torch.zeros(view.size, device=view.keys.device)


@dataclass(frozen=True, kw_only=True)
class Random(Policy):
    """Keeps tokens at random, each head others: what any choice has to do better than.

    Args:
        seed: of the draw, which depends on nothing but layer, head and position.
    """

    seed: int = 0

    def scores(self, view: View) -> Tensor:
        at = view.positions.double() + 1
        phase = at * 12.9898 + 78.233 * (view.layer + 1) + 37.719 * (view.head + 1) + 4.1414 * self.seed
        return (phase.sin() * 43758.5453).frac().abs()


@dataclass(frozen=True, kw_only=True)
class Coded(Full):
    """Forgets nothing: what is over the budget goes into codes, all keys and values but sinks and recent ones.

    The budget counts bytes as ever: of entries that are whole. Nothing is saved while the model runs, which computes
    with what was decoded; what is told are the bytes of the codes, packed.

    Args:
        codec: of keys and of values, each token's by itself: a text such as ``"integers(width=4)"``, or a codec.
    """

    codec: str | Codec = "integers(width=4)"

    def due(self, over: float, decoding: bool) -> bool:
        return Policy.due(self, over, decoding)


@dataclass(frozen=True, kw_only=True)
class Observing(Full):
    """Forgets nothing, and notes what several policies want to know: each may take over a copy of the cache.

    Args:
        of: the policies. spent: seconds of CPU that noting took so far, by the names of what is noted.
    """

    of: tuple[Policy, ...] = ()
    spent: dict[tuple[str, ...], float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def keeps(self) -> Mapping[str, float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {name: fill for policy in self.of for name, fill in policy.keeps.items()}

    @property
    def needs_out(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(policy.needs_out for policy in self.of)

    @property
    def needs_states(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(policy.needs_states for policy in self.of)

    @property
    def rows(self) -> int:
        return max([0, *(policy.rows for policy in self.of)])

    def observe(self, view: View) -> None:
        noted: set[tuple[str, ...]] = set()
        for policy in self.of:
            if policy.keeps and (names := tuple(policy.keeps)) not in noted:
                begun = time.process_time()
                policy.observe(view)
                self.spent[names] = self.spent.get(names, 0.0) + time.process_time() - begun
                noted.add(names)
