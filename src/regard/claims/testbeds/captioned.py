"""Drawn scenes with captions: what stands in an image from left to right, its colour first, and where it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

SIDE, SIZE, MOST = 32, 8, 3
COLOURS = torch.tensor([[1.0, 0.1, 0.1], [0.1, 1.0, 0.1], [0.2, 0.3, 1.0], [1.0, 1.0, 0.1]])
"""Red, green, blue, yellow: words 0 to 3. Words 4 to 7 are a square, a disc, a cross and a triangle."""
A, AND, STOP, PADDING = 8, 9, 10, 11
WORDS = 12
LENGTH = 4 * MOST


def stencils() -> Tensor:
    """The four shapes, ``(4, 8, 8)``."""
    y, x = torch.meshgrid(torch.arange(SIZE) - 3.5, torch.arange(SIZE) - 3.5, indexing="ij")
    square, disc = torch.ones(SIZE, SIZE), (y.square() + x.square() <= 14).float()
    cross, triangle = ((y.abs() < 1.5) | (x.abs() < 1.5)).float(), (x.abs() * 2 <= y + 4).float()
    return torch.stack([square, disc, cross, triangle])


@dataclass(frozen=True)
class Scenes:
    """Images and what is said of them.

    Args:
        images: ``(b, 3, 32, 32)``. words: ``(b, n)``. real: ``(b, n)``, False = padding. shown: ``(b, n)``, which
            object a word is about, −1 for words that are about none. corners: ``(b, objects, 2)`` top and left of each.
        counts: ``(b,)`` objects of each image.
    """

    images: Tensor
    words: Tensor
    real: Tensor
    shown: Tensor
    corners: Tensor
    counts: Tensor

    def inside(self, side: int) -> Tensor:
        """The share of each cell of a grid that is inside of each object's box, ``(b, objects, cells)``."""
        edges = torch.arange(side + 1) * (SIDE / side)
        low, high = edges[:-1], edges[1:]

        def covered(start: Tensor) -> Tensor:
            overlap = torch.minimum(high, start[..., None] + SIZE) - torch.maximum(low, start[..., None])
            return overlap.clamp(min=0) * side / SIDE

        y, x = covered(self.corners[..., 0].float()), covered(self.corners[..., 1].float())
        return (y[..., :, None] * x[..., None, :]).flatten(2)

    def regions(self) -> Tensor:
        """The pixels and the corner of each object's box, ``(b, objects, 3 · 64 + 2)``, zeros behind the last."""
        top, left = (self.corners[..., axis, None, None, None] for axis in (0, 1))
        rows, columns = top + torch.arange(SIZE)[:, None], left + torch.arange(SIZE)
        which = torch.arange(len(self.images))[:, None, None, None, None]
        pixels = self.images[which, torch.arange(3)[:, None, None], rows, columns].flatten(2)
        there = torch.arange(MOST) < self.counts[:, None]
        return torch.cat([pixels, self.corners / SIDE], -1) * there[..., None]


def draw(count: int, generator: Generator, objects: int | None = None) -> Scenes:
    """Random scenes of one to three objects, or of so many, that do not overlap: each has a third of the width."""
    images = 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    words = torch.full((count, LENGTH), PADDING)
    shown, corners = torch.full((count, LENGTH), -1), torch.zeros(count, MOST, 2, dtype=torch.int64)
    counts, shapes = torch.full((count,), objects or 0), stencils()
    for row in range(count):
        if objects is None:
            counts[row] = 1 + int(torch.randint(MOST, (1,), generator=generator))
        slots = torch.randperm(MOST, generator=generator)[: counts[row]].sort().values.tolist()
        place = 0
        for number, slot in enumerate(slots):
            colour, shape = torch.randint(4, (2,), generator=generator).tolist()
            top = int(torch.randint(SIDE - SIZE + 1, (1,), generator=generator))
            left = 10 * slot + int(torch.randint(3, (1,), generator=generator))
            corners[row, number] = torch.tensor([top, left])
            images[row, :, top : top + SIZE, left : left + SIZE] += COLOURS[colour][:, None, None] * shapes[shape]
            told = [A, colour, 4 + shape, STOP if number + 1 == len(slots) else AND]
            words[row, place : place + 4] = torch.tensor(told)
            shown[row, place + 1 : place + 3] = number
            place += 4
    return Scenes(images, words, words != PADDING, shown, corners, counts)


def loss_of(logits: Tensor, scenes: Scenes) -> Tensor:
    """The cross-entropy of words that are no padding."""
    return F.cross_entropy(logits[scenes.real], scenes.words[scenes.real])


def sentences(words: Tensor) -> list[list[int]]:
    """Captions up to their full stop."""
    return [row[: row.index(STOP) + 1] if STOP in row else row for row in words.tolist()]


def bleu(told: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], most: int = 4) -> float:
    """BLEU over a corpus with one reference each: the geometric mean of clipped n-gram precisions, n = 1 to ``most``,
    times ``exp(1 − reference / told)`` where what is told is shorter.

    Paper: Papineni et al., 2002.
    """
    precisions = []
    for n in range(1, most + 1):
        hits = total = 0
        for ours, theirs in zip(told, wanted, strict=True):
            grams, known = (Counter(zip(*(row[i:] for i in range(n)), strict=False)) for row in (ours, theirs))
            hits += sum((grams & known).values())
            total += sum(grams.values())
        if hits == 0:
            return 0.0
        precisions.append(hits / total)
    ours, theirs = sum(map(len, told)), sum(map(len, wanted))
    return min(1.0, math.exp(1 - theirs / ours)) * math.exp(sum(map(math.log, precisions)) / most)


def named(told: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> float:
    """F1 of the objects, pairs of a colour and a shape that follow each other, that captions name."""

    def objects(row: Sequence[int]) -> Counter[tuple[int, int]]:
        return Counter((a, b) for a, b in pairwise(row) if a < 4 <= b < A)

    pairs = [(objects(ours), objects(theirs)) for ours, theirs in zip(told, wanted, strict=True)]
    hits = sum(sum((a & b).values()) for a, b in pairs)
    return 2 * hits / max(sum(sum(a.values()) + sum(b.values()) for a, b in pairs), 1)
