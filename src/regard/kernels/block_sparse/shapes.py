"""Which cells of a grid stand together in a block: the boxes that leave fewest entries to compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from regard.patterns.base import Pattern, Region
from regard.patterns.grid import regions

Boxes = Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]
"""Sides of a box of queries and of one of keys, by the number of axes."""
SAMPLED = 1 << 18
"""Pairs of blocks above which a sample of the blocks of queries says which boxes are best."""
BETTER = 0.9
"""The share of the entries of the boxes named first that others have at most, if they are taken."""


@dataclass(frozen=True)
class Counted:
    """How many blocks of keys are listed.

    Args:
        counts: ``(heads, some blocks of queries)``. more: blocks of queries over those. rows, cols: tokens of a block.
    """

    counts: Tensor
    more: float
    rows: int
    cols: int

    @property
    def entries(self) -> float:
        """Entries of A in listed blocks, of all heads."""
        return float(self.counts.sum()) * self.more * self.rows * self.cols


def counted(pattern: Pattern, n: int, m: int, line: tuple[int, int], boxes: Boxes, most: int = SAMPLED) -> Counted:
    """Of evenly spaced blocks of queries, if there are more than ``most`` pairs."""
    queries, keys = regions(pattern, n, m, line, boxes, classes=True)
    step = max(1, len(queries.tokens) * len(keys.tokens) // most)
    some = Region(queries.tokens[step // 2 :: step], queries.run, queries.box)
    counts = pattern.cover_of(some, keys, len(some.tokens) * some.tokens.shape[1], m, exact=False).offsets.diff()
    more = len(queries.tokens) / max(len(some.tokens), 1)
    return Counted(counts.view(pattern.heads, -1), more, queries.tokens.shape[1], keys.tokens.shape[1])


def fewest(pattern: Pattern, n: int, m: int, line: tuple[int, int], choices: Sequence[Boxes]) -> Boxes:
    """The boxes with the fewest entries; the first ones where others save little, or blocks are none of a grid."""
    first = choices[0]
    if pattern.grid is None or len(pattern.grid) == 1 or n != m:
        return first
    axes = len(pattern.grid)
    found = {boxes[axes]: boxes for boxes in choices}
    entries = {sides: counted(pattern, n, m, line, boxes).entries for sides, boxes in found.items()}
    least = min(entries, key=entries.__getitem__)
    return first if entries[least] > BETTER * entries[first[axes]] else found[least]
