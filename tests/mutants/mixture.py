"""Mutants of mixtures: for each law, ways of breaking it that really happen."""

from __future__ import annotations

import torch
from torch import nn

from regard.core.kinds import Sample
from regard.featuremap.mixture import Mixture, MixtureTraits

CHANNELS = 6


class TextbookMixture(Mixture):
    """Two convolutions, weighed by a softmax over a matrix of the map's means."""

    traits = MixtureTraits(batch_norm=True)

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.near, self.far = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm, self.choose = nn.BatchNorm2d(channels), nn.Linear(channels, 2)

    def branches(self, x):
        return [self.near(x), self.norm(self.far(x))]

    def weights(self, x, branches):
        return torch.softmax(self.choose(x.mean((2, 3))), 1)[:, :, None, None, None]

    @property
    def parameter_count(self):
        c = self.channels
        return 10 * c * c + 3 * c + 2 * c + 2

    def flops(self, shape):
        b, c, y, x = shape
        return 20 * b * c * c * y * x + 4 * b * c

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls(CHANNELS))]


ORIGINAL = TextbookMixture
"""What they are broken from."""
MUTANTS: dict[str, list[type[Mixture]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[Mixture]) -> type[Mixture]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        return mutant

    return register


@breaks("definition")
class BranchLost(TextbookMixture):
    """The fast path forgets the second branch."""

    def forward(self, x):
        super().forward(x)
        branches = self.branches(x)
        return self.weights(x, branches)[:, 0] * branches[0]


@breaks("definition")
class SumOfAll(TextbookMixture):
    """The branches are summed unweighed."""

    def forward(self, x):
        super().forward(x)
        return self.branches(x)[0] + self.branches(x)[1]


@breaks("count")
class NormForgotten(TextbookMixture):
    """The formula leaves the norm out."""

    @property
    def parameter_count(self):
        return super().parameter_count - 2 * self.channels


@breaks("macs")
class BranchForgotten(TextbookMixture):
    """The formula leaves a branch out."""

    def flops(self, shape):
        return super().flops(shape) - 2 * shape[0] * self.channels**2 * shape[2] * shape[3]


@breaks("sizes")
class OneSize(TextbookMixture):
    """Weighs a map of 13 × 7 cells alone."""

    def weights(self, x, branches):
        return super().weights(x.reshape(-1, self.channels, 13, 7), branches)


@breaks("sizes")
class DeviationOfOneCell(TextbookMixture):
    """Divides by the deviation of cells, of which one has none."""

    def before(self, x):
        return x / x.var((2, 3), keepdim=True, correction=0).sqrt()


@breaks("singles")
class BatchNormInTraining(TextbookMixture):
    """Uses the batch's statistics in evaluation too."""

    def branches(self, x):
        self.norm.train()
        return super().branches(x)


@breaks("weights")
class HalfSums(TextbookMixture):
    """Weights that sum to one half."""

    def weights(self, x, branches):
        return super().weights(x, branches) / 2


@breaks("weights")
class Unsquashed(TextbookMixture):
    """The second weight is one minus any number."""

    def weights(self, x, branches):
        first = self.choose(x.mean((2, 3)))[:, :1, None, None, None]
        return torch.cat((first, 1 - first), 1)


@breaks("weights")
class BlindWeights(TextbookMixture):
    """Weights that are the same for every map."""

    def weights(self, x, branches):
        return super().weights(0 * x, branches)


@breaks("weights")
class OneWeightTooMany(TextbookMixture):
    """Three weights for two branches."""

    def weights(self, x, branches):
        w = super().weights(x, branches)
        return torch.cat((w, 0 * w[:, :1]), 1)


@breaks("gradients")
class DetachedWeights(TextbookMixture):
    """The weights are read without their gradient."""

    def weights(self, x, branches):
        return super().weights(x, branches).detach()
