"""The laws of mechanisms: what A must satisfy, held against every word that a mechanism's traits claim."""

from __future__ import annotations

from collections.abc import Callable

from regard.core.mechanism import Example, Mechanism
from regard.laws.mechanism.calls import edges, grouped, padding
from regard.laws.mechanism.equation import cost, definition, gradients, linear, rows
from regard.laws.mechanism.masks import mask
from regard.laws.mechanism.order import causal, extend, symmetry
from regard.laws.mechanism.ranges import ranges
from regard.laws.mechanism.subject import Subject

__all__ = ["LAWS", "Law", "example", "subject"]

Law = Callable[[Subject], str]
LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        *(definition, linear, causal, rows, extend, padding, mask),
        *(gradients, grouped, cost, symmetry, edges, ranges),
    )
}
subject = Subject


def example(
    thing: Mechanism, heads: int = 2, kv_heads: int | None = None, head_dim: int = 5, value_dim: int = 7
) -> Example:
    """A mechanism as it is, examined in calls of these sizes; ``kv_heads`` None for as many as heads."""
    return Example(type(thing).__name__, thing, heads, kv_heads or heads, head_dim, value_dim)
