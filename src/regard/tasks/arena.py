"""The Long Range Arena's other shapes: paths in a picture, texts byte by byte, pairs of texts.

Paper: Tay et al., arXiv 2011.04006. Pictures are drawn and texts are Python's standard library, so that nothing need be
downloaded; figures are not comparable with the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from regard.core.errors import wrong
from regard.tasks.example import Example, check_length, draw

NO, YES = 256, 257
BORDER = 258
BYTES = 259
"""Ids of byte texts: 256 bytes, the two answers, and a border between texts or before the answer."""


@dataclass(frozen=True)
class Pathfinder:
    """A drawn picture, row by row, and whether its two end points lie on one dashed path: the answer, last.

    Each picture has two smooth dashed paths; the marked points are both ends of one, or one end of each.

    grey: levels of a pixel. The vocabulary is these, a border, and the two answers.
    """

    grey: int = 8

    chance = 0.5

    @property
    def vocabulary(self) -> int:
        return self.grey + 3

    def side(self, length: int) -> int:
        """Of the square picture that a sequence of ``length`` tokens holds."""
        check_length(length, 8 * 8 + 2, "Pathfinder")
        return math.isqrt(length - 2)

    def sample(self, generator: Generator, length: int) -> Example:
        """One sequence of ``length`` tokens: borders, the largest picture that fits, border, answer."""
        side = self.side(length)
        joined = bool(draw(generator, 2))
        picture = self.picture(generator, side, joined)
        pixels = (picture * (self.grey - 1)).round().long().flatten()
        border = torch.full((length - 1 - side * side,), self.grey)
        answer = torch.tensor([self.grey + 1 + joined])
        return Example(torch.cat([border[1:], pixels, border[:1], answer]), torch.arange(length) == length - 1)

    def picture(self, generator: Generator, side: int, joined: bool) -> Tensor:
        """``(side, side)`` from 0 to 1."""
        canvas = torch.zeros(side, side)
        paths = [smooth_path(generator, side) for _ in range(2)]
        for path in paths:
            dashes = (torch.arange(len(path)) // 3) % 2 == 0
            stamp(canvas, path[dashes], 0.5)
        ends = (paths[0][0], paths[0][-1] if joined else paths[1][-1])
        for end in ends:
            stamp(canvas, end[None], 1.0)
        return canvas


def smooth_path(generator: Generator, side: int) -> Tensor:
    """``(points, 2)``: a walk whose direction turns slowly, turned back by the borders."""
    point = 1 + torch.rand(2, generator=generator) * (side - 2)
    angle = torch.rand((), generator=generator) * 2 * math.pi
    points = []
    for _ in range(2 * side):
        points.append(point)
        angle = angle + torch.randn((), generator=generator) * 0.25
        step = torch.stack([angle.sin(), angle.cos()]) * 0.7
        if not bool(((point + step >= 0) & (point + step <= side - 1)).all()):
            angle = angle + math.pi / 2
            step = torch.stack([angle.sin(), angle.cos()]) * 0.7
        point = (point + step).clamp(0, side - 1)
    return torch.stack(points)


def stamp(canvas: Tensor, points: Tensor, level: float) -> None:
    """Marks the pixels nearest to the points."""
    y, x = points.round().long().unbind(1)
    canvas[y, x] = torch.maximum(canvas[y, x], torch.tensor(level))


@dataclass(frozen=True)
class ByteText:
    """A stretch of a source file, byte by byte, and whether it is of the first group of files: the answer, last.

    groups: two lists of texts; a stretch says by its manner, not its place, which of them it is of.
    """

    groups: tuple[Sequence[str], Sequence[str]]

    vocabulary = BYTES
    chance = 0.5

    @cached_property
    def texts(self) -> tuple[list[bytes], list[bytes]]:
        """The groups as bytes."""
        first, second = ([text.encode() for text in group if text] for group in self.groups)
        if not first or not second:
            raise wrong("ByteText: groups", f"{len(first)} and {len(second)} texts", "at least one each")
        return first, second

    def sample(self, generator: Generator, length: int) -> Example:
        """One sequence of ``length`` tokens: the stretch, border, answer."""
        check_length(length, 18, "ByteText")
        group = draw(generator, 2)
        stretch = cut(self.texts[group], generator, length - 2)
        ids = torch.cat([stretch, torch.tensor([BORDER, YES if group == 0 else NO])])
        return Example(ids, torch.arange(length) == length - 1)


@dataclass(frozen=True)
class Retrieval:
    """Two stretches of source files, byte by byte, and whether they are of one file: the answer, last.

    files: the texts, at least two.
    """

    files: Sequence[str]

    vocabulary = BYTES
    chance = 0.5

    @cached_property
    def texts(self) -> list[bytes]:
        """The files as bytes."""
        found = [text.encode() for text in self.files if text]
        if len(found) < 2:
            raise wrong("Retrieval: files", f"{len(found)} texts", "at least two")
        return found

    def sample(self, generator: Generator, length: int) -> Example:
        """One sequence of ``length`` tokens: a stretch, border, the other, border, answer."""
        check_length(length, 36, "Retrieval")
        same, room = bool(draw(generator, 2)), length - 3
        first = draw(generator, len(self.texts))
        second = first if same else (first + 1 + draw(generator, len(self.texts) - 1)) % len(self.texts)
        border = torch.tensor([BORDER])
        left = cut([self.texts[first]], generator, room // 2)
        right = cut([self.texts[second]], generator, room - room // 2)
        ids = torch.cat([left, border, right, border, torch.tensor([YES if same else NO])])
        return Example(ids, torch.arange(length) == length - 1)


@dataclass(frozen=True)
class ByteLM:
    """A stretch of text, byte by byte, of which every byte but the first is an answer.

    texts: what is drawn from, each as likely as it is long.
    """

    texts: Sequence[str]

    vocabulary = BYTES
    chance = 1 / 256

    @cached_property
    def joined(self) -> bytes:
        return "\n".join(self.texts).encode()

    def sample(self, generator: Generator, length: int) -> Example:
        """``length`` bytes from anywhere."""
        return Example(cut([self.joined], generator, length), torch.arange(length) > 0)


def cut(texts: Sequence[bytes], generator: Generator, size: int) -> Tensor:
    """``size`` bytes from a random place of one of the texts, repeated where it is shorter."""
    text = texts[draw(generator, len(texts))]
    if len(text) < size:
        text = text * -(-size // len(text))
    start = draw(generator, len(text) - size + 1)
    return torch.frombuffer(bytearray(text[start : start + size]), dtype=torch.uint8).long()
