"""Vectors as few bits, and back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from regard.core.kinds import Sample


@dataclass(frozen=True, kw_only=True)
class Codec(ABC):
    """Vectors as whole numbers of few bits each, and back, every vector by itself.

    x (…, d)  →  codes (…, ·) in 0 … sizes − 1  →  x' (…, d)
    """

    divides: ClassVar[int] = 1
    """What d has to be a multiple of."""

    @abstractmethod
    def sizes(self, d: int) -> Mapping[str, tuple[int, int]]:
        """``(how many codes, of how many values each)`` a vector of ``d`` numbers has, by their name."""

    @abstractmethod
    def encode(self, x: Tensor) -> dict[str, Tensor]:
        """Codes ``(…, how many)`` int64 of vectors ``(…, d)``, by name."""

    @abstractmethod
    def decode(self, codes: Mapping[str, Tensor], d: int) -> Tensor:
        """Vectors ``(…, d)`` float32 of codes."""

    def through(self, x: Tensor) -> Tensor:
        """What is left of vectors ``(…, d)``, in their own precision."""
        return self.decode(self.encode(x), x.shape[-1]).to(x.dtype)

    def bits(self, d: int) -> float:
        """Bits a number, of codes that are packed without waste."""
        return sum(count * math.log2(size) for count, size in self.sizes(d).values()) / d

    @classmethod
    @abstractmethod
    def examples(cls) -> Sequence[Sample]:
        """Small instances for `regard.laws.codec`, which says what they are `given`."""
