"""A pattern as disjoint ones, so that each can be computed in blocks that suit it."""

from __future__ import annotations

from functools import lru_cache, reduce

from regard.patterns.base import And, Not, Pattern


@lru_cache(maxsize=64)
def parted(pattern: Pattern) -> list[Pattern]:
    """Disjoint patterns that show together what ``pattern`` shows, alternatives of one period together.

        C & (X | Y | …)  =  C & X,   C & Y & ~X,   …

    Blocks of consecutive tokens suit a window, blocks of one residue class what is strided; no blocks suit both. A
    pattern of several heads, on a grid of several axes, or whose alternatives have one period alone stays whole.
    """
    if pattern.heads > 1 or len(pattern.grid or (0,)) > 1 or pattern.period > 1:
        return [pattern]
    conjuncts = conjunction(pattern)
    for place, part in enumerate(conjuncts):
        alike: dict[int, list[Pattern]] = {}
        for one in alternatives(part):
            alike.setdefault(one.period, []).append(one)
        if len(alike) > 1:
            rest, found = conjuncts[:place] + conjuncts[place + 1 :], []
            unions = [reduce(Pattern.__or__, alike[period]) for period in sorted(alike)]
            for index, union in enumerate(unions):
                others = [Not(earlier) for earlier in unions[:index]]
                found.append(reduce(And, [*rest, union, *others]))
            return found
    return [pattern]


def conjunction(pattern: Pattern) -> list[Pattern]:
    """The patterns whose intersection it is."""
    if isinstance(pattern, And):
        return [*conjunction(pattern.first), *conjunction(pattern.second)]
    return [pattern]


def alternatives(pattern: Pattern) -> list[Pattern]:
    """The patterns whose union it is: ``~(~a & ~b)`` is ``a | b``."""
    if not isinstance(pattern, Not):
        return [pattern]
    hidden = conjunction(pattern.inner)
    if len(hidden) > 1 and all(isinstance(part, Not) for part in hidden):
        return [found for part in hidden if isinstance(part, Not) for found in alternatives(part.inner)]
    return [pattern]
