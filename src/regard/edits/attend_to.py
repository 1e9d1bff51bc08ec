"""Attention set by hand: heads that look at some tokens alone, and at each of them alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.edit import Edit, Heads, Place, Rows, Spans, Where, sampled
from regard.core.errors import wrong
from regard.core.kinds import Sample


class AttendTo(Edit):
    """Heads whose rows look at the chosen keys, at each of them alike: A'_ij = (1 − s) A_ij + s [j ∈ K_i] / \\|K_i\\|.

    K_i are those of the chosen keys that row i sees; a row that sees none is left as it is. Rows keep their sum.

    Args:
        keys: spans of positions of the unpadded text, of each row of the batch if a mapping. strength: s, from 0 to 1.
        heads, layers, rows, batch: see `core.edit.Where`.

    Raises:
        ValueError: spans that hold no position, or another strength.

    Paper: the intervention of Merullo et al., arXiv 2310.08744, on inhibition heads and a negative mover head.
    """

    dial: ClassVar[tuple[str, float] | None] = ("strength", 0.0)

    def __init__(
        self,
        keys: Spans | Mapping[int, Spans],
        strength: float = 1.0,
        *,
        heads: Heads | None = None,
        layers: Iterable[int] | None = None,
        rows: Rows | None = None,
        batch: Iterable[int] | None = None,
    ) -> None:
        if not 0 <= strength <= 1:
            raise wrong("strength", str(strength), "0 (nothing) to 1 (the chosen keys alone)")
        super().__init__(Where(layers, heads, rows, keys, batch=None if batch is None else list(batch)))
        every = list(keys.values()) if isinstance(keys, Mapping) else [keys]
        self.strength, self.group_count = strength, 1 + max((positions(spans) for spans in every), default=0)
        if self.group_count == 1:
            raise wrong("keys", f"{keys}", "spans that hold a position")

    def groups(self, place: Place) -> Tensor:
        """A group for each chosen key, counted from 1."""
        chosen = self.where.chosen_keys(place).long()
        return (chosen * chosen.cumsum(1))[:, None]

    def masses(self, m: Tensor, place: Place) -> Tensor:
        seen = (m[..., 1:] > 0).to(m.dtype)
        count = seen.sum(-1, keepdim=True)
        even = m.sum(-1, keepdim=True) * seen / count.clamp(min=1)
        wanted = torch.where(count > 0, torch.cat([torch.zeros_like(m[..., :1]), even], -1), m)
        return torch.lerp(m, wanted, self.strength)

    @classmethod
    def examples(cls) -> list[Sample]:
        return sampled(cls([(2, 4)]), cls([(1, 2), (3, 5)], 0.4, heads={0: [1], 1: [0, 4]}))


def positions(spans: Spans) -> int:
    """How many positions lie in spans, which may overlap."""
    return len({at for start, stop in spans for at in range(start, stop)})
