"""Mutants of patterns: for each law, a window broken in one way."""

from __future__ import annotations

import dataclasses

import torch

from regard.core.kinds import Sample
from regard.patterns.base import Pattern
from regard.patterns.line import Window


class Near(Window):
    """The tokens at a distance below the size."""

    def __repr__(self) -> str:
        return f"Window({self.size})"

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls(6), {"tokens": 43})]


ORIGINAL = Near
MUTANTS: dict[str, list[type[Pattern]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[Pattern]) -> type[Pattern]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        return mutant

    return register


@breaks("entries")
class AlignedAtTheStart(Near):
    """Fewer queries are the first ones."""

    def dense(self, n, m=None, device="cpu", rows=None):
        m = n if m is None else m
        return super().dense(m, m, device)[:, :n][:, rows or slice(None)]


@breaks("entries")
class RowsFromTheStart(Near):
    """Some rows are always the first."""

    def dense(self, n, m=None, device="cpu", rows=None):
        whole = super().dense(n, m, device)
        return whole if rows is None else whole[:, : rows.stop - rows.start]


@breaks("entries")
class SeesNothing(Near):
    """Every entry is hidden."""

    def visible(self, i, j, m):
        return super().visible(i, j, m) & (j < 0)


@breaks("bounds", "cover")
class OneTokenShort(Near):
    """Judges blocks by a window that is one token smaller."""

    def bounds(self, queries, keys, m):
        return Window(self.size - 1).bounds(queries, keys, m)


@breaks("bounds", "cover")
class OneTokenWide(Near):
    """Judges blocks by a window that is one token larger."""

    def bounds(self, queries, keys, m):
        return Window(self.size + 1).bounds(queries, keys, m)


@breaks("bounds", "cover")
class FullWhereSome(Near):
    """Takes a block for full that holds some visible entry."""

    def bounds(self, queries, keys, m):
        found = super().bounds(queries, keys, m)
        return dataclasses.replace(found, all_low=found.some_low, all_high=found.some_high)


@breaks("cover")
class LastColumnLost(Near):
    """Lists no block of the last keys."""

    def settled(self, queries, keys, m, exact):
        some, every = super().settled(queries, keys, m, exact)
        return some & (torch.arange(len(keys.tokens)) < len(keys.tokens) - 1), every


@breaks("pairs")
class WholeBlocks(Near):
    """Counts every pair of a listed block."""

    def pairs(self, n, m=None):
        return self.cover(n, m, 64, 64).cells


@breaks("future")
class ForgetsEarly(Near):
    """Forgets a key one token too soon."""

    def future(self, j, i):
        return j > i - self.size + 1


@breaks("flex")
class Mirrored(Near):
    """Its function for FlexAttention exchanges queries and keys, and hides what is ahead."""

    def flex_mask(self, m):
        return lambda batch, head, i, j: self.visible(j, i, m) & (i <= j)


@breaks("endless")
class FromTheEnd(Near):
    """The last tokens are hidden, wherever the end is."""

    def visible(self, i, j, m):
        return super().visible(i, j, m) & (j < m - 2)


@breaks("text")
class AnotherSize(Near):
    """Writes its size plus one."""

    def __repr__(self) -> str:
        return f"Window({self.size + 1})"
