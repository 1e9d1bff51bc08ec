"""Supports near the diagonal and at the start: the local window and the sink tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regard.core.errors import wrong


@dataclass(frozen=True)
class Window:
    """The keys nearer to the query than ``size``: ``|p_i - p_j| < size`` for positions p.

    Causal, that is the query itself and the ``size - 1`` tokens before it; two-sided, as many after it too.

    Raises:
        ValueError: ``size`` is below one.
    """

    size: int

    def __post_init__(self):
        if self.size < 1:
            raise wrong("size", str(self.size), "at least 1: a token sees itself")

    def dense(self, queries: Tensor, keys: Tensor) -> Tensor:
        """``(..., n, m)`` bool from positions ``queries (..., n)`` and ``keys (..., m)``."""
        return (queries[..., :, None] - keys[..., None, :]).abs() < self.size


@dataclass(frozen=True)
class Sinks:
    """The first ``count`` tokens of each sequence or packed document: ``p_j < count``.

    Raises:
        ValueError: ``count`` is negative.
    """

    count: int

    def __post_init__(self):
        if self.count < 0:
            raise wrong("count", str(self.count), "0 or more")

    def dense(self, queries: Tensor, keys: Tensor) -> Tensor:
        """``(..., n, m)`` bool from positions ``queries (..., n)`` and ``keys (..., m)``."""
        return (keys < self.count)[..., None, :].expand(*keys.shape[:-1], queries.shape[-1], -1)
