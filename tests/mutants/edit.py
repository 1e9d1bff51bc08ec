"""Mutants of edits: for each law, a highlighting edit broken in one way."""

from __future__ import annotations

import torch

from regard.core.edit import Edit, Where
from regard.core.kinds import Sample


class Plain(Edit):
    """The chosen keys weigh more against the others."""

    dial = ("strength", 0.0)

    def __init__(self, keys, strength=1.5, *, heads=None, layers=None, rows=None, batch=None):
        super().__init__(Where(layers, heads, rows, keys, batch=batch))
        self.strength = strength

    def masses(self, m, place):
        moved = m * torch.tensor([0.0, self.strength]).exp()
        return moved * m.sum(-1, keepdim=True) / moved.sum(-1, keepdim=True).clamp(min=1e-30)

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls([(2, 5)]))]


ORIGINAL = Plain
MUTANTS: dict[str, list[type[Edit]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[Edit]) -> type[Edit]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        return mutant

    return register


@breaks("identity")
class NeverNothing(Plain):
    """Its strength is a little more than it says."""

    @property
    def idle(self):
        return False

    def masses(self, m, place):
        return Plain.masses(Plain([(2, 5)], self.strength + 1e-3), m, place)


@breaks("identity")
class AllOrNothing(Plain):
    """Any strength but zero is its full strength."""

    def masses(self, m, place):
        return Plain.masses(Plain([(2, 5)], 1.5), m, place)


@breaks("identity")
class DoesNothing(Plain):
    """Gives masses back as they are."""

    def masses(self, m, place):
        return m


@breaks("identity")
class RoundsToNothing(Plain):
    """Scales rows to one after it has done nothing, which rounds."""

    @property
    def idle(self):
        return False


@breaks("rows")
class LosesMass(Plain):
    """Takes mass from the others and gives it to nobody."""

    def masses(self, m, place):
        return m * torch.tensor([0.5, 1.0])


@breaks("rows")
class Negative(Plain):
    """Takes more mass than there is."""

    def masses(self, m, place):
        taken = m[..., 1:] * 2 * self.strength
        return torch.cat([m[..., :1] + taken, m[..., 1:] - taken], -1)


@breaks("place")
class InPlace(Plain):
    """Writes into what it is given."""

    def heads(self, z, place):
        return z.mul_(1 + self.strength)


@breaks("groups")
class TiltsWithin(Plain):
    """Adds to the scores too, so that shares within a group change."""

    def scores(self, place):
        return torch.arange(place.m) * 0.1 * self.strength


@breaks("decode")
class SquareMapsAlone(Plain):
    """Forgets the tokens that a cache holds."""

    def masses(self, m, place):
        return super().masses(m, place) if place.start + place.m == place.n else None


@breaks("decode")
class PlacesOfThePass(Plain):
    """Counts keys from the first query of each pass."""

    def groups(self, place):
        at = torch.arange(place.m) - place.rows[0]
        return ((at >= 2) & (at < 5)).long().expand(place.keys.shape[0], 1, -1)


@breaks("decode")
class WritesIntoTheCache(Plain):
    """Writes into the keys, which are those of the cache."""

    def queries(self, q, k, place):
        return q, k.mul_(1.1)


@breaks("padding")
class BySlots(Plain):
    """Names keys by their slots."""

    def groups(self, place):
        at = torch.arange(place.m)
        return ((at >= 2) & (at < 5)).long().expand(place.keys.shape[0], 1, -1)


@breaks("padding")
class CountsPadding(Plain):
    """Shares mass out by how many keys there are, padding among them."""

    def masses(self, m, place):
        taken = m[..., 1:] / place.m
        return torch.cat([m[..., :1] + taken, m[..., 1:] - taken], -1)


@breaks("again")
class Grows(Plain):
    """Grows stronger with each call, whatever text it is."""

    def masses(self, m, place):
        self.strength += 0.01
        return super().masses(m, place)


@breaks("order")
class CountsCalls(Plain):
    """Weighs by how often edits of its kind were called."""

    calls = 0

    def masses(self, m, place):
        CountsCalls.calls += 1
        return Plain([(2, 5)], self.strength * (1 + CountsCalls.calls % 3)).masses(m, place)


@breaks("saved")
class KeepsTwice(Plain):
    """Keeps its strength as twice what it was given."""

    def __init__(self, keys, strength=1.5, **where):
        super().__init__(keys, 2 * strength, **where)

    def arguments(self):
        return {"keys": self.where.keys, "strength": self.strength}
