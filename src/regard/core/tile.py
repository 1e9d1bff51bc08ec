"""How A reaches those who read it: whole rows at a time, never all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """Some whole rows of one layer's A.

    Args:
        layer: index of the attention layer in the watched model, in order of execution.
        weights: ``(batch, heads, rows, m)``, the rows of A in float32 or float64; zeros where nothing may be seen.
        rows: ``(rows,)`` int64, which queries of the ``n`` these are.
        n, m: numbers of queries and of keys of the whole A; row i stands at key column ``i + (m - n)``.
        queries: ``(batch, rows)`` bool, False = a padding query, which no statistic may count.
        keys: ``(batch, m)`` bool, False = padding.
        causal: whether row i sees no later keys.
    """

    layer: int
    weights: Tensor
    rows: Tensor
    n: int
    m: int
    queries: Tensor
    keys: Tensor
    causal: bool


class Probe(Protocol):
    """A mergeable statistic of A: a monoid fed tile by tile, so corpora are a map-reduce."""

    name: str

    def update(self, tile: Tile) -> None:
        """Takes in some rows."""
        ...

    def merge(self, other: Self) -> None:
        """Takes in what another probe of the same kind has seen."""
        ...

    def result(self) -> Any:
        """The statistic over all rows so far."""
        ...
