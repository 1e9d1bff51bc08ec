"""The slots of a sequence in which the queries and keys of one attention call stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from regard.hosts import caches


@dataclass(frozen=True)
class Handed:
    """What an attention module was given.

    Args:
        cache: None for none. past: number of slots that it held before the pass.
        given: whether the cache was given to the pass, which did not make it itself.
        new: number of tokens that the pass was given, None where it was given no tokens.
        others: lengths of other sequences that the module was given.
    """

    cache: Any = None
    past: int = 0
    given: bool = False
    new: int | None = None
    others: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Slots:
    """Where a call of self-attention stands.

    Args:
        query: slot of the first query; the others follow it. key: of the first key, the others follow, too.
    """

    query: int
    key: int = 0


def slots_of(n: int, m: int, handed: Handed, index: Any) -> Slots | None:
    """Where ``n`` queries over ``m`` keys stand, by the cache's layer of this ``index``; None: in no such sequence.

    Keys and queries end with the newest token. A cache of fixed size gives keys beyond it, one with a window lacks the
    first ones. A model that needs the output of its last tokens alone gives fewer queries than it has new tokens.
    """
    if m == handed.past + n:
        return Slots(handed.past)
    stop = handed.past + max(n, handed.new or n)
    if handed.cache is None:
        return Slots(m - n) if m == stop else None
    held = caches.layer(handed.cache, index)
    layers = getattr(caches.own(handed.cache), "layers", []) if held is None else [held]
    if m == stop or (m > stop and any(getattr(layer, "max_cache_len", None) == m for layer in layers)):
        return Slots(stop - n)
    if n <= m < stop and any(getattr(layer, "is_sliding", False) for layer in layers):
        return Slots(stop - n, stop - m)
    return None
