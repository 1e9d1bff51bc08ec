"""The contract of mixtures: a weighted sum of branches, whose weights the feature map itself gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.gate import MapShape


@dataclass(frozen=True)
class MixtureTraits:
    """What a mixture claims; the laws hold it to every word.

    Args:
        low, high: range of the weights. sums: the weights of all branches sum to one. content: they depend on the map.
        batch_norm: batch statistics are used in training.
    """

    low: float = 0.0
    high: float = 1.0
    sums: bool = True
    content: bool = True
    batch_norm: bool = False


class Mixture(nn.Module):
    """The base of every mixture: ``y = after(Σ_i w_i ⊙ b_i)``, branches of a map weighed by what it shows.

    Hooks: `branches` gives the maps b_i, `weights` the w_i; `before` and `after`, the identity here, are what stands
    around both.

    Shapes: ``x (b, c, y, x)`` -> ``(b, c', y', x')``, of any height and width.

    Args:
        channels: of the map, c.
    """

    traits: MixtureTraits = MixtureTraits()

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise wrong("channels", str(channels), "at least 1")
        self.channels = channels

    def before(self, x: Tensor) -> Tensor:
        """What branches and weights read."""
        return x

    def branches(self, x: Tensor) -> list[Tensor]:
        """The maps ``(b, c', y', x')`` that are mixed."""
        raise NotImplementedError

    def weights(self, x: Tensor, branches: list[Tensor]) -> Tensor:
        """The weight of each branch ``(b, n, c' or 1, y' or 1, x' or 1)``: the mixture's map."""
        raise NotImplementedError

    def after(self, mixed: Tensor) -> Tensor:
        """What follows the sum."""
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise wrong("x", f"shape {tuple(x.shape)}", f"(batch, {self.channels}, rows, columns)")
        x = self.before(x)
        branches = self.branches(x)
        weights = self.weights(x, branches)
        mixed = weights[:, 0] * branches[0]
        for place, branch in enumerate(branches[1:], 1):
            mixed = torch.addcmul(mixed, weights[:, place], branch)
        return self.after(mixed)

    @property
    def parameter_count(self) -> int:
        """How many parameters it has, by formula."""
        raise NotImplementedError

    def flops(self, shape: MapShape) -> int:
        """FLOPs of the products and convolutions on a map of this shape ``(b, c, y, x)``: two a multiply-add."""
        raise NotImplementedError

    @classmethod
    def examples(cls) -> list[Sample]:
        """Small mixtures that cover the options."""
        return [Sample(cls.__name__, cls(8))]
