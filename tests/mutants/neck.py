"""Mutants of necks: for each law, ways of breaking it that really happen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from regard.core.kinds import Sample
from regard.featuremap.neck import Neck, NeckTraits
from regard.featuremap.resize import resize

CHANNELS = 4


class TextbookNeck(Neck):
    """A way down whose sums are added to the maps under strengths that begin as zero."""

    traits = NeckTraits(batch_norm=True, start="identity")

    def __init__(self, channels, out):
        super().__init__(channels, out)
        self.convolutions = nn.ModuleList(nn.Conv2d(out, out, 3, padding=1) for _ in channels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out) for _ in channels)
        self.strengths = nn.Parameter(torch.zeros(len(channels)))

    def upsampled(self, x, like):
        return resize(x, like)

    def fused(self, maps):
        found = list(maps)
        for level in range(len(maps) - 1, -1, -1):
            coarser = 0 if level == len(maps) - 1 else self.upsampled(found[level + 1], maps[level])
            new = self.norms[level](self.convolutions[level](maps[level] + coarser))
            found[level] = maps[level] + self.strengths[level] * new
        return found

    @property
    def reads(self):
        return [tuple(range(level, len(self.channels))) for level in range(len(self.channels))]

    @property
    def parameter_count(self):
        return len(self.channels) * (9 * self.out**2 + 3 * self.out + 1)

    def flops(self, given, batch=1):
        return sum(18 * batch * self.out**2 * y * x for y, x in given)

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls((CHANNELS,) * 3, CHANNELS))]


ORIGINAL = TextbookNeck
"""What they are broken from."""
MUTANTS: dict[str, list[type[Neck]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[Neck]) -> type[Neck]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        return mutant

    return register


@breaks("levels", "sizes")
class DoubledByFactor(TextbookNeck):
    """Doubles rows and columns, which odd sizes are not."""

    def upsampled(self, x, like):
        return F.interpolate(x, scale_factor=2)


@breaks("levels")
class FinestAlone(TextbookNeck):
    """Gives every map the size of the finest."""

    def fused(self, maps):
        return [resize(each, maps[0]) for each in super().fused(maps)]


@breaks("levels")
class CoarsestLost(TextbookNeck):
    """Gives one map less than it says: the coarsest is kept."""

    def fused(self, maps):
        return super().fused(maps)[:-1]


@breaks("levels")
class StandsElsewhere(TextbookNeck):
    """Says that its maps begin one level above the finest."""

    @property
    def stands(self):
        return list(range(1, len(self.channels) + 1))


@breaks("levels")
class WidthsOfTheGiven(TextbookNeck):
    """Says that each level has as many channels more as it is coarse."""

    @property
    def widths(self):
        return [self.out + level for level in range(len(self.channels))]


@breaks("levels")
class AlwaysFloat(TextbookNeck):
    """Returns float32 whatever comes in."""

    def fused(self, maps):
        return [each.float() for each in super().fused(maps)]


@breaks("reads")
class LevelDropped(TextbookNeck):
    """Forgets the coarsest map on the way down."""

    def upsampled(self, x, like):
        return 0 * resize(x, like)


@breaks("reads")
class ClaimsAll(TextbookNeck):
    """Claims that every level reads every map, without a way up."""

    @property
    def reads(self):
        return [tuple(range(len(self.channels)))] * len(self.channels)


@breaks("count")
class StrengthsForgotten(TextbookNeck):
    """The formula leaves the strengths out."""

    @property
    def parameter_count(self):
        return super().parameter_count - len(self.channels)


@breaks("macs")
class FinestForgotten(TextbookNeck):
    """The formula leaves the finest map out."""

    def flops(self, given, batch=1):
        return super().flops(given[1:], batch)


@breaks("sizes")
class Unchecked(TextbookNeck):
    """Takes fewer maps than levels."""

    def forward(self, maps):
        return self.fused(maps)


@breaks("sizes")
class DividesByDeviation(TextbookNeck):
    """Norms each map by its deviation, which one cell does not have."""

    def fused(self, maps):
        return super().fused([each / each.var((2, 3), keepdim=True, correction=0).sqrt() for each in maps])


@breaks("singles")
class BatchNormInTraining(TextbookNeck):
    """Uses the batch's statistics in evaluation too."""

    def fused(self, maps):
        self.norms.train()
        return super().fused(maps)


@breaks("start")
class BegunAtOne(TextbookNeck):
    """Begins with strengths of one."""

    def __init__(self, channels, out):
        super().__init__(channels, out)
        nn.init.ones_(self.strengths)


@breaks("start")
class NeverLearns(TextbookNeck):
    """Gives its maps as they came, whatever the strengths are."""

    def fused(self, maps):
        return list(maps)


@breaks("gradients")
class DetachedCoarse(TextbookNeck):
    """No gradient flows from a finer level to a coarser one."""

    def upsampled(self, x, like):
        return resize(x, like).detach()


@breaks("gradients")
class UnusedNorm(TextbookNeck):
    """Holds a norm that nothing goes through."""

    def __init__(self, channels, out):
        super().__init__(channels, out)
        self.spare = nn.BatchNorm2d(out)
