"""Mutants of codecs: for each law, whole numbers with one scale broken in one way."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from regard.codecs.integers import Integers
from regard.core.kinds import Sample


@dataclass(frozen=True, kw_only=True)
class Rounded(Integers):
    """Five bits, one scale."""

    width: int = 5

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls(), {"d": 13, "coarser": Integers(width=3)})]


ORIGINAL = Rounded
MUTANTS: dict[str, list[type[Rounded]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[Rounded]) -> type[Rounded]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        return mutant

    return register


@breaks("counted")
class SaysFewer(Rounded):
    """Says that its numbers have four bits."""

    def sizes(self, d):
        return {**super().sizes(d), "numbers": (d, 15)}


@breaks("counted")
class HidesTheScales(Rounded):
    """Does not count its scales."""

    def sizes(self, d):
        return {"numbers": super().sizes(d)["numbers"]}


@breaks("counted")
class SaysFewerBits(Rounded):
    """Rounds the bits down."""

    def bits(self, d):
        return float(int(super().bits(d)))


@breaks("alone")
class OneScaleForAll(Rounded):
    """Takes the scale of the longest vector for all."""

    def encode(self, x):
        codes = super().encode(x)
        longest = x / x.abs().amax(-1, keepdim=True).clamp(min=1e-30) * x.abs().amax()
        return {**codes, "scales": super().encode(longest)["scales"]}


@breaks("alone")
class Widens(Rounded):
    """Gives float32 whatever it was given."""

    def through(self, x):
        return super().through(x).float()


@breaks("close")
class LosesSigns(Rounded):
    """Decodes absolute values."""

    def decode(self, codes, d):
        return super().decode(codes, d).abs()


@breaks("close")
class IgnoresBits(Rounded):
    """Keeps what three bits keep."""

    def encode(self, x):
        return super().encode(Integers(width=3).through(x))


@breaks("again")
class HalfAStepAside(Rounded):
    """Decodes each number half a step too high."""

    def decode(self, codes, d):
        scales = super().decode({**codes, "numbers": torch.full_like(codes["numbers"], self.most + 1)}, d)
        return super().decode(codes, d) + scales / 2


@breaks("scaled")
class AddsALittle(Rounded):
    """Decodes a little more than there was."""

    def decode(self, codes, d):
        return super().decode(codes, d) + 1e-3


@breaks("scaled")
class DividesByZero(Rounded):
    """Divides by the length of the vector."""

    def through(self, x):
        length = x.norm(dim=-1, keepdim=True)
        return super().through(x / length) * length
