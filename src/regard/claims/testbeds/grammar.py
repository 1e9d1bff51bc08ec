"""Sentences of a small grammar with their constituents, and the best tree of scored spans."""

from __future__ import annotations

from functools import cache

import torch
from torch import Generator, Tensor

LABELS = ("S", "NP", "VP", "PP", "ADJP")
KINDS = {"det": 2, "noun": 8, "verb": 6, "of": 3, "with": 3, "adv": 2, "adj": 4}
"""How many words of each kind; a phrase with "of" belongs to the noun before it, one with "with" to the verb."""
FIRST, LAST = sum(KINDS.values()), sum(KINDS.values()) + 1
WORDS = LAST + 1
SHORTEST, LONGEST = 5, 12
Spans = list[tuple[int, int, int]]


class Drawn:
    """One sentence as it is drawn: its words and spans."""

    def __init__(self, generator: Generator) -> None:
        self.generator, self.words, self.spans = generator, [], []
        self.sentence()

    def chance(self, share: float) -> bool:
        return float(torch.rand((), generator=self.generator)) < share

    def word(self, kind: str) -> None:
        before = sum(list(KINDS.values())[: list(KINDS).index(kind)])
        self.words.append(before + int(torch.randint(KINDS[kind], (), generator=self.generator)))

    def close(self, start: int, label: str) -> None:
        self.spans.append((start, len(self.words), LABELS.index(label)))

    def sentence(self) -> None:
        self.noun_phrase()
        self.verb_phrase()
        self.close(0, "S")

    def noun_phrase(self) -> None:
        start = len(self.words)
        self.word("det")
        if self.chance(0.3):
            inner = len(self.words)
            self.word("adv")
            self.word("adj")
            self.close(inner, "ADJP")
        self.word("noun")
        self.close(start, "NP")
        if self.chance(0.3):
            self.prepositional("of")
            self.close(start, "NP")

    def verb_phrase(self) -> None:
        start = len(self.words)
        self.word("verb")
        self.noun_phrase()
        self.close(start, "VP")
        if self.chance(0.4):
            self.prepositional("with")
            self.close(start, "VP")

    def prepositional(self, kind: str) -> None:
        start = len(self.words)
        self.word(kind)
        self.noun_phrase()
        self.close(start, "PP")


@cache
def sentences(count: int, seed: int) -> dict[int, tuple[Tensor, Tensor]]:
    """By length n: words ``(b, n + 2)``, one before the first and one behind the last, and labels of spans
    ``(b, n + 1, n + 1)`` from fence to fence, numbered from 1, 0 for none."""
    generator, found = Generator().manual_seed(seed), {}
    for _ in range(count):
        made = Drawn(generator)
        if SHORTEST <= len(made.words) <= LONGEST:
            found.setdefault(len(made.words), []).append(made)
    return {n: (words_of(each), chart_of(each, n)) for n, each in sorted(found.items())}


def words_of(made: list[Drawn]) -> Tensor:
    """The words with both ends."""
    return torch.tensor([[FIRST, *each.words, LAST] for each in made])


def chart_of(made: list[Drawn], n: int) -> Tensor:
    """The labels of all spans."""
    chart = torch.zeros(len(made), n + 1, n + 1, dtype=torch.int64)
    for row, each in enumerate(made):
        for start, stop, label in each.spans:
            chart[row, start, stop] = label + 1
    return chart


def parse(scores: Tensor) -> Tensor:
    """The labels ``(b, n, n)`` of the binary tree with the highest sum of scores ``(b, n, n, labels)``; 0 for none.

    A span of the tree may have no label, which scores zero; spans outside of it have none. By dynamic programming.
    """
    b, fences = scores.shape[:2]
    best, label = torch.cat([torch.zeros_like(scores[..., :1]), scores], -1).max(-1)
    total, split = torch.zeros_like(best), torch.zeros_like(label)
    for width in range(1, fences):
        for start in range(fences - width):
            stop = start + width
            if width > 1:
                parts = total[:, start, start + 1 : stop] + total[:, start + 1 : stop, stop]
                inside, where = parts.max(1)
                split[:, start, stop] = where + start + 1
                total[:, start, stop] = best[:, start, stop] + inside
            else:
                total[:, start, stop] = best[:, start, stop]
    kept = torch.zeros_like(label)
    for row in range(b):
        waiting = [(0, fences - 1)]
        while waiting:
            start, stop = waiting.pop()
            kept[row, start, stop] = label[row, start, stop]
            if stop - start > 1:
                middle = int(split[row, start, stop])
                waiting += [(start, middle), (middle, stop)]
    return kept


def hits(told: Tensor, wanted: Tensor) -> Tensor:
    """For each label ``(labels, 3)``: spans that are right, told, and wanted."""
    every = torch.arange(1, len(LABELS) + 1)[:, None, None, None]
    ours, theirs = told == every, wanted == every
    return torch.stack([(ours & theirs).sum((1, 2, 3)), ours.sum((1, 2, 3)), theirs.sum((1, 2, 3))], 1)


def f1(counts: Tensor) -> Tensor:
    """F1 of counts ``(…, 3)``."""
    return 2 * counts[..., 0] / (counts[..., 1] + counts[..., 2]).clamp(min=1)
