"""Mutants of projections: for each law, grouped projections broken in one way."""

from __future__ import annotations

import torch

from regard.core.kinds import Sample
from regard.core.sizes import Sizes
from regard.projections.base import Grouped

SIZES = Sizes(13, 4, 2, 6, 7)


class Plain(Grouped):
    """Grouped projections, equal to themselves."""

    @classmethod
    def examples(cls):
        found = cls(SIZES)
        return [Sample(cls.__name__, found, {"equals": Grouped(SIZES).same_as(found)})]


ORIGINAL = Plain
MUTANTS: dict[str, list[type[Grouped]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[Grouped]) -> type[Grouped]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        return mutant

    return register


@breaks("shapes")
class KeysOfTheQueries(Plain):
    """Takes keys and values of the sequence that asks, not of the one attended to."""

    def forward(self, x, context):
        return super().forward(x, x)


@breaks("shapes")
class FullPrecision(Plain):
    """Gives float32, whatever it is given."""

    def forward(self, x, context):
        return tuple(part.float() for part in super().forward(x, context))  # pyright: ignore


@breaks("shapes")
class ValuesElsewhere(Plain):
    """Says that its values are part of its keys."""

    @property
    def value_slice(self):
        return slice(0, 6)


@breaks("limit")
class ScaleTwice(Plain):
    """Divides queries by the root of their size, as the mechanism does again."""

    def forward(self, x, context):
        q, k, v = super().forward(x, context)
        return q * 6**-0.5, k, v


@breaks("limit")
class GroupsInterleaved(Plain):
    """Its query heads stand in another order than those of its output matrix."""

    def forward(self, x, context):
        q, k, v = super().forward(x, context)
        return q[:, [0, 2, 1, 3]], k, v


@breaks("cache", "padding")
class PlaceInTheCall(Plain):
    """Adds to keys the place of their token in the call, not in the text."""

    def forward(self, x, context):
        q, k, v = super().forward(x, context)
        return q, k + torch.linspace(0, 1, k.shape[2], dtype=k.dtype, device=k.device)[:, None], v


@breaks("cache")
class CacheOfAllHeads(Plain):
    """Counts a key and a value for each query head."""

    @property
    def cached_numbers(self):
        return self.heads * (self.head_dim + self.value_dim)


@breaks("causal", "cache")
class NextToken(Plain):
    """Its values are means of a token and the next."""

    def forward(self, x, context):
        q, k, v = super().forward(x, context)
        return q, k, (v + torch.cat([v[:, :, 1:], v[:, :, -1:]], 2)) / 2


@breaks("causal")
class Normalised(Plain):
    """Centres queries over all tokens of the call."""

    def forward(self, x, context):
        q, k, v = super().forward(x, context)
        return q - q.mean(2, keepdim=True), k, v


@breaks("padding")
class BatchMean(Plain):
    """Centres what it is given over the batch."""

    def forward(self, x, context):
        return super().forward(x - x.mean(0), context - context.mean(0))


@breaks("parameters")
class OneTooFew(Plain):
    """Does not count its output matrix."""

    @property
    def parameter_count(self):
        return super().parameter_count - self.out.weight.numel()


@breaks("parameters")
class FreeOutput(Plain):
    """Counts no FLOPs for its output matrix."""

    @property
    def flops(self):
        return super().flops - 2 * self.out.weight.numel()


@breaks("gradients")
class DetachedKeys(Plain):
    """Keys without a gradient."""

    def forward(self, x, context):
        q, k, v = super().forward(x, context)
        return q, k.detach(), v


@breaks("gradients")
class UnusedBias(Plain):
    """Has a parameter that nothing reads."""

    def __init__(self, sizes):
        super().__init__(sizes)
        self.bias = torch.nn.Parameter(torch.zeros(3))


@breaks("gradients")
class GradientOfQueriesHalved(Plain):
    """Its queries have half of their gradient."""

    def forward(self, x, context):
        q, k, v = super().forward(x, context)
        return q / 2 + q.detach() / 2, k, v
