"""Mutants of gates: for each law, ways of breaking it that really happen."""

from __future__ import annotations

import torch
from torch import nn

from regard.core.kinds import Sample
from regard.featuremap.gate import Gate, GateTraits, Started

CHANNELS = 12


class TextbookGate(Gate):
    """Squeeze and excitation with a spatial gate after it, written out."""

    traits = GateTraits(batch_norm=True)

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.down, self.up = nn.Linear(channels, channels // 4), nn.Linear(channels // 4, channels)
        self.plane, self.norm = nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1)

    def pool(self, x):
        return x.mean((2, 3))

    def factors(self, x, past=None):
        channel = torch.sigmoid(self.up(torch.relu(self.down(self.pool(x)))))[:, :, None, None]
        plane = torch.sigmoid(self.norm(self.plane((x * channel).mean(1, keepdim=True))))
        return {"c": channel, "yx": plane}

    @property
    def parameter_count(self):
        c = self.channels
        return 2 * c * (c // 4) + c // 4 + c + 9 + 2

    def flops(self, shape):
        b, c, y, x = shape
        return 4 * b * c * (c // 4) + 18 * b * y * x

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls(CHANNELS))]


ORIGINAL = TextbookGate
"""What they are broken from."""
MUTANTS: dict[str, list[type[Gate]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[Gate]) -> type[Gate]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        return mutant

    return register


@breaks("definition")
class BranchLost(TextbookGate):
    """The fast path forgets the spatial gate."""

    def scale(self, x, past=None):
        return self.factors(x)["c"]


@breaks("definition")
class ResidualForgotten(TextbookGate):
    """Declares 1 + f and multiplies by f."""

    rule = "residual"

    def scale(self, x, past=None):
        factors = self.factors(x)
        return factors["c"] * factors["yx"]


@breaks("definition")
class AlwaysFloat(TextbookGate):
    """Returns float32 whatever comes in."""

    def forward(self, x, past=None):
        return super().forward(x).float()


@breaks("count")
class BiasOn(TextbookGate):
    """The convolution has a bias that the formula does not know."""

    def __init__(self, channels):
        super().__init__(channels)
        self.plane = nn.Conv2d(1, 1, 3, padding=1)


@breaks("macs")
class MixForgotten(TextbookGate):
    """The formula leaves the matrices out."""

    def flops(self, shape):
        return 18 * shape[0] * shape[2] * shape[3]


@breaks("sizes")
class OneSize(TextbookGate):
    """Pools 13 × 7 cells by reshaping them, as code with a fixed H and W does."""

    def pool(self, x):
        return x.reshape(-1, self.channels, 13 * 7).mean(2)


@breaks("sizes")
class DeviationOfOneCell(TextbookGate):
    """Pools by the sample's standard deviation, which one cell does not have."""

    def pool(self, x):
        return x.std((2, 3))


@breaks("sizes")
class ReadsMemory(TextbookGate):
    """Sums a map as it lies in memory."""

    def pool(self, x):
        flat = x.as_strided((x.shape[0], self.channels, x[0, 0].numel()), (x[0].numel(), x[0, 0].numel(), 1))
        return flat.mean(2)


@breaks("sizes")
class Unchecked(TextbookGate):
    """Takes a map of other channels as far as they fit."""

    def forward(self, x, past=None):
        return x if x.dim() != 4 else x * self.scale(x[:, : self.channels]).mean(1, keepdim=True)


@breaks("singles")
class BatchNormInTraining(TextbookGate):
    """Uses the batch's statistics in evaluation too."""

    def factors(self, x, past=None):
        self.norm.train()
        return super().factors(x)


@breaks("span")
class Unsquashed(TextbookGate):
    """Forgets the sigmoid of the plane."""

    def factors(self, x, past=None):
        factors = super().factors(x)
        return factors | {"yx": torch.logit(factors["yx"], 1e-6)}


@breaks("span")
class NotOne(TextbookGate):
    """Claims planes that sum to one."""

    traits = GateTraits(sums="space", batch_norm=True)


@breaks("span")
class MisnamedAxes(TextbookGate):
    """Calls a factor of the channels one of space."""

    def factors(self, x, past=None):
        factors = super().factors(x)
        return {"yx": factors["c"], "c": factors["yx"]}


@breaks("symmetry")
class ClaimsPermutation(TextbookGate):
    """Claims that the order of channels does not matter, which a matrix over them denies."""

    traits = GateTraits(permutes=True, batch_norm=True)


@breaks("symmetry")
class KnowsPositions(TextbookGate):
    """Pools with weights that grow along the rows."""

    def pool(self, x):
        return (x * torch.linspace(0, 1, x.shape[2], dtype=x.dtype)[:, None]).mean((2, 3))


@breaks("start")
class BegunAtOne(TextbookGate):
    """Begins with α = 1."""

    def identity(self):
        started = Started(self)
        with torch.no_grad():
            started.alpha.fill_(1.0)
        return started


@breaks("start")
class ScaledStart(TextbookGate):
    """Begins by dividing x and multiplying it again, which rounds."""

    def identity(self):
        class Rounded(Started):
            def forward(self, x, past=None):
                return super().forward(x / 3, past) * 3

        return Rounded(self)


@breaks("gradients")
class DetachedPool(TextbookGate):
    """No gradient flows through what is pooled."""

    def pool(self, x):
        return super().pool(x).detach()


@breaks("gradients")
class DeadPlane(TextbookGate):
    """The plane's weights are read without their gradient."""

    def factors(self, x, past=None):
        factors = super().factors(x)
        return factors | {"yx": factors["yx"].detach()}
