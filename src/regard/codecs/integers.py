"""Rounding to nearest: whole numbers with one scale for each vector, what every codec is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.codecs.half import HALF, from_half, to_half
from regard.core.codec import Codec
from regard.core.errors import wrong
from regard.core.kinds import Sample


@dataclass(frozen=True, kw_only=True)
class Integers(Codec):
    """Symmetric whole numbers of so many bits, with a scale in half precision for every ``group`` of numbers.

        s = max_i |x_i| / m,   q_i = round(x_i / s),   m = 2^{width−1} − 1

    Args:
        width: bits of a number: 8, 4. group: numbers that share a scale; 0 for the whole vector.

    Raises:
        ValueError: fewer than 2 bits or more than 16; a group below zero, or that does not divide a vector.
    """

    width: int = 8
    group: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.width <= 16 or self.group < 0:
            raise wrong("width, group", f"{self.width}, {self.group}", "2 to 16 bits, and at least 0")

    @property
    def most(self) -> int:
        """The largest whole number, m."""
        return 2 ** (self.width - 1) - 1

    def sizes(self, d: int) -> Mapping[str, tuple[int, int]]:
        return {"numbers": (d, 2 * self.most + 1), "scales": (d // self.grouped(d), HALF)}

    def grouped(self, d: int) -> int:
        """Numbers that share a scale."""
        group = self.group or d
        if d % group:
            raise wrong("group", f"{group}, for vectors of {d}", f"a divisor of {d}")
        return group

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        x = x.float().unflatten(-1, (-1, self.grouped(x.shape[-1])))
        scales = to_half(x.abs().amax(-1) / self.most)
        step = from_half(scales)[..., None]
        numbers = torch.where(step > 0, x / step, 0).round().clamp(-self.most, self.most)
        return {"numbers": (numbers + self.most).long().flatten(-2), "scales": scales}

    def decode(self, codes: Mapping[str, Tensor], d: int) -> Tensor:
        numbers = (codes["numbers"] - self.most).float().unflatten(-1, (-1, self.grouped(d)))
        return (numbers * from_half(codes["scales"])[..., None]).flatten(-2)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [
            Sample("8 bits", cls(), {"d": 23, "coarser": cls(width=5)}),
            Sample("4 bits in groups", cls(width=4, group=7), {"d": 21, "coarser": cls(width=3, group=21)}),
        ]
