"""Where the documents of a packed batch lie, so that nothing is computed between two of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from regard.core.layout import Layout

LEAST = 128
"""Tokens below which neighbouring documents run together: fewer make a call dearer than what it leaves out."""


@dataclass(frozen=True)
class Run:
    """Some documents that lie beside each other in one sequence.

    Args:
        sequence: of the batch. keys: their places. alone: whether it is one document.
    """

    sequence: int
    keys: slice
    alone: bool


def runs(segments: Tensor) -> Iterator[Run]:
    """The documents of ``segments (b, m)``, those shorter than `LEAST` a few together."""
    opens = torch.nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    for sequence, row in enumerate(opens.cpu()):
        borders = [*row.nonzero()[:, 0].tolist(), len(row)]
        start, held = 0, 0
        for first, last in pairwise(borders):
            if held and last - first >= LEAST:
                yield Run(sequence, slice(start, first), held == 1)
                start, held = first, 0
            held += 1
            if last - start >= LEAST or last == len(row):
                yield Run(sequence, slice(start, last), held == 1)
                start, held = last, 0


def reach(layout: Layout, n: int, m: int, blocks: list[slice]) -> list[tuple[int, int]]:
    """The keys, from the first to behind the last, that some query of each block of rows may see."""
    shift = m - n
    last = [min(max(rows.stop + shift, 0), m) if layout.causal else m for rows in blocks]
    if layout.segments is None:
        return [(0, stop) for stop in last]
    segments = layout.segments
    borders = torch.nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 1), value=True)
    place = torch.arange(m + 1, device=segments.device)
    opened = torch.where(borders[:, :-1], place[:-1], 0).cummax(1).values.amin(0)[shift:]
    closed = torch.where(borders[:, 1:], place[1:], m).flip(1).cummin(1).values.flip(1).amax(0)[shift:]
    ends = torch.stack([torch.stack([opened[rows].amin(), closed[rows].amax()]) for rows in blocks]).tolist()
    return [(first, min(stop, end)) for (first, end), stop in zip(ends, last, strict=True)]
