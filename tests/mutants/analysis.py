"""Mutants of analyses: for each law, prefix matching broken in one way."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from regard.analysis.base import DenseMaps, HeadScores, Prompt
from regard.analysis.induction_heads import InductionHeads
from regard.core.kinds import Sample
from regard.probes.head_statistics import DuplicateToken, Induction, RowMean


class Prefix(InductionHeads):
    """Weight on the token after the last occurrence."""

    @classmethod
    def examples(cls):
        (sample,) = super().examples()

        def known():
            found = cls().run(heads_of_one(), [Prompt(torch.arange(17).repeat(2))])
            return torch.tensor(found.of((0, 1))), torch.tensor(1.0)

        return [Sample(cls.__name__, cls(), {**sample.given, "known": known})]


def heads_of_one() -> DenseMaps:
    """A subject whose second head looks at nothing but the token after the last occurrence."""

    def maps(ids):
        n, block = ids.shape[1], ids.shape[1] // 2
        weights = torch.eye(n).repeat(1, 2, 1, 1)
        weights[0, 1, block:] = torch.eye(n)[1 : n - block + 1]
        return [weights]

    return DenseMaps(maps)


ORIGINAL = Prefix
MUTANTS: dict[str, list[type[Prefix]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[Prefix]) -> type[Prefix]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        return mutant

    return register


@breaks("known", "planted")
class AtTheToken(Prefix):
    """Weight on the occurrence itself."""

    def probe(self, prompt):
        probe = DuplicateToken()
        probe.name = "induction"
        return probe


@breaks("null")
class Ranked(Prefix):
    """Scores relative to the best head, of which one always has the highest."""

    def run(self, subject, data):
        found = super().run(subject, data)
        best = max(x for _, _, x in found.ranked())
        moments = {at: replace(m, total=m.total / best, squares=m.squares / best**2) for at, m in found.moments.items()}
        return replace(found, moments=moments)


@breaks("heads")
class FirstHeadCounts(Prefix):
    """The first head's score is added to all others'."""

    def found(self, probe):
        return {at: replace(m, total=m.total + 0.1 * m.total[:1]) for at, m in probe.moments.items()}


@dataclass(frozen=True)
class Averaged(HeadScores):
    """Scores whose merged means are means of means."""

    def merge(self, other):
        both = {
            at: replace(
                m,
                total=(m.total / m.count + other.moments[at].total / other.moments[at].count) / 2,
                count=m.count * 0 + 1,
            )
            for at, m in self.moments.items()
        }
        return Averaged(self.name, both)


@breaks("merge")
class MeanOfMeans(Prefix):
    """Results are merged by their means, however many rows each is of."""

    def run(self, subject, data):
        data = list(data)
        found = super().run(subject, data)
        return Averaged(found.name, found.moments)


@breaks("rows")
class FirstBlock(Prefix):
    """Rows of the first block that is shown are all that count."""

    def probe(self, prompt):
        class Once(Induction):
            def update(self, tile):
                if tile.layer not in self.moments:
                    RowMean.update(self, tile)

        return Once()


@breaks("table")
class TensorTable(Prefix):
    """A table of tensors."""

    def run(self, subject, data):
        @dataclass(frozen=True)
        class Loose(HeadScores):
            def table(self):
                return [{**row, "error": torch.tensor(row["error"])} for row in super().table()]

        found = super().run(subject, data)
        return Loose(found.name, found.moments)
