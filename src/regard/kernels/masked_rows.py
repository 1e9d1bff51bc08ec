"""Patterns over few tokens: rows of them in a call of the fused operator, under a bias made once for all lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from regard.kernels.dense import Piece, additive, causal_pieces
from regard.kernels.tiled import split
from regard.patterns.base import Pattern

LEAST = 256
"""The side of the smallest mask: making it costs little more than one of fewer tokens, and serves all of these."""
SIDE = 1024
"""Tokens up to which rows of the mask are faster than blocks of it."""
LARGEST = 1 << 23
"""Entries of a mask that is kept, of all heads: more heads have one for fewer tokens."""
WIDE = 2048
"""Tokens up to which they are so for patterns that leave few blocks out."""
ROWS = 128
"""Queries of a call, if there are more than twice as many."""
LENGTHS = 128
"""Lengths of a mask whose pieces are kept: among few tokens their making is felt."""


@dataclass(frozen=True)
class Square:
    """A pattern among its first tokens, which is a part of what it shows among more.

    Args:
        mask: ``(1, heads, side, side)`` bool. low, high: of each row the first key that some head sees, and the one
            behind the last. late: the first key of the head that sees its first last, ``side`` where one sees none.
        triangle: how many of the first tokens see all that are not behind them, and nothing else.
    """

    mask: Tensor
    low: list[int]
    high: list[int]
    late: list[int]
    triangle: int
    found: dict[tuple[int, int, int], Sequence[Piece]] = field(default_factory=dict)

    @classmethod
    @lru_cache(maxsize=16)
    def of(cls, pattern: Pattern, side: int) -> Square:
        """The first ``side`` tokens, kept for the next call."""
        mask = pattern.dense(side)
        place = torch.arange(side, dtype=torch.int16)
        first = torch.where(mask, place, torch.tensor(side, dtype=torch.int16)).amin(2)
        last = (mask * (place + 1)).amax(2)
        other = (mask != torch.ones(side, side, dtype=torch.bool).tril_()).any(0).any(1)
        triangle = int(other.int().argmax()) if other.any() else side
        return cls(mask[None], first.amin(0).tolist(), last.amax(0).tolist(), first.amax(0).tolist(), triangle)

    @lru_cache(maxsize=16)  # noqa: B019 - squares are few and kept
    def bias(self, dtype: torch.dtype) -> Tensor:
        """The mask as the operator adds it to the scores."""
        bias = additive(self.mask, dtype)
        assert bias is not None
        return bias

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


@dataclass(frozen=True)
class Part(Piece):
    """A piece whose mask is a part of a square.

    Args:
        square: the whole. first: place of the first row in it. sure: whether every row is known to see a key.
    """

    square: Square | None = None
    first: int = 0
    sure: bool = False

    def bias(self, dtype: torch.dtype) -> Tensor:
        """The mask as the operator adds it to the scores: a view."""
        assert self.square is not None
        last = self.first + self.rows.stop - self.rows.start
        return self.square.bias(dtype)[:, :, self.first : last, self.cols]

    def sighted(self) -> Tensor | None:
        """Which rows see any key; None if all do."""
        return None if self.sure else super().sighted()


def fits(pattern: Pattern, m: int, device: torch.device) -> bool:
    """Whether `pieces` may be asked for."""
    return 0 < m <= SIDE and kept(pattern, m, device)


def kept(pattern: Pattern, m: int, device: torch.device) -> bool:
    """Whether a mask of so many tokens can serve other lengths too, and is small enough to be kept."""
    return pattern.endless and device.type == "cpu" and pattern.heads * side_of(m) ** 2 <= LARGEST


def side_of(m: int) -> int:
    """The side of the square that holds ``m`` tokens."""
    return 1 << max(m - 1, LEAST - 1).bit_length()


def pieces(pattern: Pattern, n: int, m: int, blind: int, mask: Tensor | None) -> Sequence[Piece]:
    """The last ``n`` of ``m`` tokens over all of them, behind ``blind`` rows; ``mask (b or 1, h or 1, n, m)``."""
    square, lengths = Square.of(pattern, side_of(m)), (n, m, blind)
    if mask is not None:
        return list(cut(square, *lengths, mask))
    if lengths not in square.found:
        if len(square.found) >= LENGTHS:
            square.found.clear()
        simple = n == m <= square.triangle and not blind
        square.found[lengths] = causal_pieces(n, m, None) if simple else list(cut(square, *lengths))
    return square.found[lengths]


def cut(square: Square, n: int, m: int, blind: int, mask: Tensor | None = None) -> Iterator[Piece]:
    """Rows of the square, a part at a time, over the keys that some of them see."""
    shift = m - n
    for rows in split(0, n, ROWS if n > 2 * ROWS else n):
        first, last = rows.start + shift, rows.stop + shift
        cols = slice(min(square.low[first:last]), min(max(square.high[first:last]), m))
        if cols.stop <= cols.start:
            continue
        seen, place = square.mask[:, :, first:last, cols], slice(rows.start + blind, rows.stop + blind)
        if mask is None:
            sure = max(square.late[first:last]) < cols.stop
            yield Part(place, cols, mask=seen, alone=True, square=square, first=first, sure=sure)
        else:
            yield Piece(place, cols, mask=seen & mask[:, :, rows, cols], alone=True)


def cells(pattern: Pattern, n: int, m: int) -> int:
    """Entries of A that the `pieces` compute."""
    found = pieces(pattern, n, m, 0, None)
    return sum((piece.rows.stop - piece.rows.start) * (piece.cols.stop - piece.cols.start) for piece in found)
