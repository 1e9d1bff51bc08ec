"""Mutants of latents: for each law, FLARE, slots or queries broken in one way."""

from __future__ import annotations

import torch

from regard.core.kinds import Sample
from regard.networks.latents.base import Latents, shares, split_heads
from regard.networks.latents.ep import EfficientProbing
from regard.networks.latents.flare import Flare
from regard.networks.latents.slots import Slots


class Plain(Flare):
    """FLARE, which obeys every law."""

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls(12, 5, 3, 1))]


ORIGINAL = Plain
MUTANTS: dict[str, list[type[Latents]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[Latents]) -> type[Latents]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        return mutant

    return register


class PlainSlots(Slots):
    """Slots for the mutants below."""

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls(7, 3, 8, 2, 11))]


@breaks("shapes")
class InSinglePrecision(Plain):
    """Gives float32, whatever it is given."""

    def written(self, latents, array, prepared):
        return super().written(latents, array, prepared).float()


@breaks("shapes")
class OneTooMany(PlainSlots):
    """Leaves an empty slot behind."""

    def written(self, latents, array, prepared):
        return torch.cat([latents, torch.zeros_like(latents[:, :1])], 1)


@breaks("order")
class PlaceInTheArray(Plain):
    """Adds to elements where they stand."""

    def prepared(self, array):
        return super().prepared(array + torch.linspace(0, 1, array.shape[1], dtype=array.dtype)[:, None])


@breaks("order")
class SlotsOfTheirOwn(PlainSlots):
    """Each slot has a number added that is its own."""

    def mixed(self, turn, latents):
        return latents + torch.linspace(0, 1, latents.shape[1], dtype=latents.dtype)[:, None]


@breaks("masked")
class MaskForgotten(Plain):
    """Reads what is no element too."""

    def gathered(self, turn, asked, real):
        return super().gathered(turn, asked, None)


@breaks("masked")
class NormedOverTheBatch(Plain):
    """Centres keys and values over everything that it is given."""

    def prepared(self, array):
        made = super().prepared(array)
        return made - made.mean((0, 1))


@breaks("normalised")
class WrongAxis(PlainSlots):
    """Shares out the elements' attention over the elements, so that slots do not compete."""

    def gathered(self, turn, asked, real):
        return shares(asked, real, "keys") @ asked.v


@breaks("normalised")
class NotRenormalised(PlainSlots):
    """Sums what slots get, and does not take the mean."""

    def gathered(self, turn, asked, real):
        return torch.softmax(asked.q * asked.scale @ asked.k.mT, -2) @ asked.v


@breaks("normalised")
class GroupsInterleaved(EfficientProbing):
    """Its queries take every M-th channel of the values, each another query's."""

    def gathered(self, turn, asked, real):
        return super().gathered(turn, asked._replace(v=asked.v.flip(1)), real)

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls(12, 3))]


@breaks("cost")
class AllPairs(Plain):
    """Forms the whole matrix."""

    def written(self, latents, array, prepared):
        values = split_heads(prepared[..., self.channels :], self.heads)
        return self.out((self.effective(array) @ values).transpose(1, 2).flatten(2))

    def maps(self, array, key_mask=None, start=None, generator=None):
        asked = self.reading(0, self.start(len(array)), self.prepared(array))
        return [shares(asked, key_mask, "keys")]


@breaks("cost")
class OutputForgotten(Plain):
    """Does not count what goes out."""

    def flops(self, n, batch=1):
        return super().flops(n, batch) - 2 * batch * n * self.out.weight.numel()


@breaks("rank")
class WithItself(Plain):
    """Every element keeps a share of its own value."""

    def effective(self, array, key_mask=None):
        found = super().effective(array, key_mask)
        return found + 0.1 * torch.eye(found.shape[-1], dtype=found.dtype)


@breaks("rank")
class AnotherMatrix(Plain):
    """Shows the matrix of reading alone, spread over all elements."""

    def effective(self, array, key_mask=None):
        (read,) = self.maps(array, key_mask)
        return read.mean(2, keepdim=True).expand(-1, -1, array.shape[1], -1)


@breaks("gradients")
class InitialIsFixed(Plain):
    """Does not train the latents that it begins with."""

    def start(self, batch, generator=None):
        return super().start(batch, generator).detach()


@breaks("gradients")
class HalfOfTheValues(Plain):
    """Its values have half of their gradient."""

    def prepared(self, array):
        made = super().prepared(array)
        return made / 2 + made.detach() / 2
