"""Mutants of cache policies: for each law, a heavy-hitter policy broken in one way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from regard.core.kinds import Sample
from regard.core.policy import Policy, Reader, best


@dataclass(frozen=True, kw_only=True)
class Plain(Policy):
    """Keeps what a query attended to far more than to all alike, the first token and the newest two."""

    sinks: int = 1
    recent: int = 2
    every: int = 2
    keeps: ClassVar = {"peak": 0.0}

    def observe(self, view):
        view.stats["peak"] = torch.maximum(view.stats["peak"], peaks(view))

    def scores(self, view):
        return view.stats["peak"]

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls(), {"budget": 9})]


def peaks(view):
    """The largest weight of each entry, against what it would have if all seen had the same."""
    return (view.weights() * (view.query_positions + 1)[:, None]).amax((0, 1))


ORIGINAL = Plain
MUTANTS: dict[str, list[type[Policy]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[Policy]) -> type[Policy]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        return mutant

    return register


@breaks("definition")
class MergesValues(Plain):
    """Writes what it forgets into the values that it keeps."""

    def scores(self, view):
        view.values.add_(0.01 * view.values.mean(0))
        return super().scores(view)


@breaks("definition")
class NeverForgets(Plain):
    """Is never due."""

    def due(self, over, decoding):
        return False


@breaks("full")
class TouchesKeys(Plain):
    """Writes into the keys that it judges."""

    def observe(self, view):
        view.keys.mul_(1.0001)
        super().observe(view)


@breaks("full")
class AlwaysDue(Plain):
    """Keeps no more than twelve tokens, whatever the budget."""

    def due(self, over, decoding):
        return True

    def budget(self, size, layer, layers, n):
        return min(size, 12)


@breaks("padding")
class DrawsAnew(Plain):
    """Draws at random, each time otherwise."""

    def scores(self, view):
        return torch.rand(view.size)


@breaks("padding")
@dataclass(frozen=True, kw_only=True)
class FirstOfTheBatch(Plain):
    """Scores all sequences of a batch by the one that it was shown first."""

    shown: dict = field(default_factory=dict)

    def scores(self, view):
        first = torch.zeros(64)
        first[view.positions] = super().scores(view)
        return self.shown.setdefault((view.layer, view.head), first)[view.positions]


@breaks("state", "order")
@dataclass(frozen=True, kw_only=True)
class Remembers(Plain):
    """Remembers in itself what it was shown of each head."""

    notes: dict = field(default_factory=dict)

    def observe(self, view):
        known = self.notes.setdefault((view.layer, view.head), torch.zeros(64))
        known[view.positions] = torch.maximum(known[view.positions], peaks(view))

    def scores(self, view):
        return self.notes[view.layer, view.head][view.positions]


@breaks("memory")
@dataclass(frozen=True, kw_only=True)
class Hoards(Plain):
    """Holds on to the keys that it has judged."""

    hoard: list = field(default_factory=list)

    def scores(self, view):
        self.hoard.append(view.keys)
        return super().scores(view)


@breaks("memory")
class NotesInALargeTable(Plain):
    """Notes its sums in a part of a larger tensor."""

    def observe(self, view):
        table = torch.zeros(1000)
        table[: view.size] = torch.maximum(view.stats["peak"], peaks(view))
        view.stats["peak"] = table[: view.size]


@breaks("budgets")
class Floors(Plain):
    """A pyramid whose layers are rounded down."""

    def budget(self, size, layer, layers, n):
        return size - 1 + int(1.9 * (1 - layer / max(layers - 1, 1)))


class PlainReader(Reader):
    """Reads what the query attends to most, and its own token."""

    def select(self, views):
        return [best(self.worth(view), min(view.budget, view.size)) for view in views]

    def worth(self, view):
        found = view.weights(slice(-1, None)).mean((0, 1))
        found[-1] = torch.inf
        return found

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls(), {"budget": 9})]


@breaks("budgets")
class ReadsMore(PlainReader):
    """Reads two tokens more than it may."""

    def select(self, views):
        return [best(self.worth(view), min(view.budget + 2, view.size)) for view in views]


@breaks("budgets")
class OverlooksItself(PlainReader):
    """Does not read the query's own token."""

    def worth(self, view):
        return -view.positions.double()


@breaks("full")
class ReadsLessThanAll(PlainReader):
    """Leaves a token out whatever the budget."""

    def select(self, views):
        return [best(self.worth(view), view.size - 1) for view in views]


@breaks("definition")
class ChangesWhatItReads(PlainReader):
    """Writes into the values while it chooses."""

    def select(self, views):
        for view in views:
            view.values.mul_(1.01)
        return super().select(views)


@breaks("lengths")
class OnlyPrompts(Plain):
    """Lets the cache grow while decoding."""

    def due(self, over, decoding):
        return not decoding and over > 0


@breaks("lengths")
class EveryStep(Plain):
    """Evicts at every step, whatever it says."""

    def due(self, over, decoding):
        return over > 0


@breaks("chunks")
class CountsPasses(Plain):
    """Counts passes and not queries."""

    def observe(self, view):
        found = peaks(view)
        view.stats["peak"] = view.stats["peak"] + found / found.max()


@breaks("order")
@dataclass(frozen=True, kw_only=True)
class NotesByTurn(Plain):
    """Notes its sums by the turn in which a sequence is shown."""

    notes: dict = field(default_factory=dict)
    turns: list = field(default_factory=list)

    def observe(self, view):
        turn = self.turns.count((view.layer, view.head, view.seen))
        self.turns.append((view.layer, view.head, view.seen))
        known = self.notes.setdefault((view.layer, view.head, turn), torch.zeros(64))
        known[view.positions] = torch.maximum(known[view.positions], peaks(view))
        view.stats["peak"] = known[view.positions]


@dataclass(frozen=True, kw_only=True)
class Rolling(Policy):
    """Keeps the first two tokens and the newest, whose positions are those in the cache."""

    sinks: int = 2

    @property
    def moves(self):
        return True

    def scores(self, view):
        return view.positions.double()

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls(), {"budget": 9})]


@breaks("definition")
class StaysWhereItWas(Rolling):
    """Leaves keys where they were."""

    def moved(self, kept, size):
        return torch.zeros_like(kept)


@breaks("definition")
class MovesBack(Rolling):
    """Turns keys the other way."""

    def moved(self, kept, size):
        return -super().moved(kept, size)


@breaks("definition")
class MovesByAllThatGo(Rolling):
    """Turns all keys by as much as the first."""

    def moved(self, kept, size):
        return torch.full_like(kept, size - len(kept))
