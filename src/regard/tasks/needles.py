"""Needles in a haystack of random ids: one or many, chained, or counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from regard.core.errors import wrong
from regard.tasks.example import Example, check_length

MARK, ASK = 0, 1
"""Ids that stand before a needle and before a question."""


@dataclass(frozen=True)
class Needle:
    """``MARK key value`` triples among filler, and at the end ``ASK key value`` for some of the keys: the answers.

    One needle is the passkey; more than are asked for are distractors that differ in their key alone.

    needles: in the haystack. queries: of them asked for at the end. vocabulary: all ids; a third each are keys, values
    and filler, beside the two marks.

    Paper: Hsieh et al. (RULER), arXiv 2404.06654: single and multi-key needles, multi-query.
    """

    needles: int = 1
    queries: int = 1
    vocabulary: int = 62

    def __post_init__(self) -> None:
        if not 1 <= self.queries <= self.needles:
            raise wrong("Needle: queries", str(self.queries), f"from 1 to the {self.needles} needles")
        if (self.vocabulary - 2) // 3 < self.needles:
            raise wrong("Needle: vocabulary", str(self.vocabulary), f"at least {3 * self.needles + 2}")

    @property
    def chance(self) -> float:
        """One of the values."""
        return 1 / ((self.vocabulary - 2) // 3)

    def sample(self, generator: Generator, length: int) -> Example:
        """One sequence of ``length`` tokens, the questions last."""
        room = length - 3 * self.queries
        check_length(length, 3 * (self.needles + self.queries), "Needle")
        third = (self.vocabulary - 2) // 3
        keys = 2 + torch.randperm(third, generator=generator)[: self.needles]
        values = 2 + third + torch.randint(third, (self.needles,), generator=generator)
        triples = torch.stack([torch.full_like(keys, MARK), keys, values], dim=1)
        context = scattered(triples, 2 + 2 * third, self.vocabulary, room, generator)
        asked = torch.randperm(self.needles, generator=generator)[: self.queries]
        questions = torch.stack([torch.full_like(asked, ASK), keys[asked], values[asked]], dim=1)
        answers = torch.zeros(length, dtype=torch.bool)
        answers[room + 2 :: 3] = True
        return Example(torch.cat([context, questions.flatten()]), answers)


@dataclass(frozen=True)
class VariableTracking:
    """Assignments ``MARK name source`` in order, chains of names that all hold the value at their head; the question is
    ``ASK name value`` for the last name of one chain.

    chains: how many, each with its own value. hops: assignments of a chain after its first.
    vocabulary: all ids; a third each are names, values and filler, beside the two marks.

    Paper: Hsieh et al. (RULER), arXiv 2404.06654: variable tracking; there all names of the chain are the answer.
    """

    chains: int = 2
    hops: int = 2
    vocabulary: int = 62

    def __post_init__(self) -> None:
        if self.chains < 1 or self.hops < 1:
            raise wrong("VariableTracking: chains, hops", f"{self.chains}, {self.hops}", "at least 1 of each")
        if (self.vocabulary - 2) // 3 < self.chains * (self.hops + 1):
            wanted = f"at least {3 * self.chains * (self.hops + 1) + 2}"
            raise wrong("VariableTracking: vocabulary", str(self.vocabulary), wanted)

    @property
    def chance(self) -> float:
        """One of the chains' values."""
        return 1 / self.chains

    def sample(self, generator: Generator, length: int) -> Example:
        """One sequence of ``length`` tokens, the question last."""
        links, third = self.chains * (self.hops + 1), (self.vocabulary - 2) // 3
        check_length(length, 3 * links + 3, "VariableTracking")
        names = 2 + torch.randperm(third, generator=generator)[:links].view(self.chains, -1)
        values = 2 + third + torch.randperm(third, generator=generator)[: self.chains]
        sources = torch.cat([values[:, None], names[:, :-1]], dim=1)
        order = torch.rand(self.chains, self.hops + 1, generator=generator).sort(1).values.flatten().argsort()
        triples = torch.stack([torch.full_like(names, MARK), names, sources], dim=2).flatten(0, 1)[order]
        context = scattered(triples, 2 + 2 * third, self.vocabulary, length - 3, generator)
        asked = int(torch.randint(self.chains, (), generator=generator))
        question = torch.tensor([ASK, int(names[asked, -1]), int(values[asked])])
        return Example(torch.cat([context, question]), torch.arange(length) == length - 1)


@dataclass(frozen=True)
class WordCount:
    """A list of words, then ``ASK`` and the word that occurs most often: the answer.

    law: "common": one word comes ``repeats`` times and all others at most once less; "frequent": words are drawn from a
    zeta law, whose commonest word is a random one each time. vocabulary: two marks and the words.

    Paper: Hsieh et al. (RULER), arXiv 2404.06654: common and frequent words; there the ten or three commonest.
    """

    law: Literal["common", "frequent"] = "common"
    repeats: int = 6
    alpha: float = 2.0
    vocabulary: int = 32

    def __post_init__(self) -> None:
        if self.law not in ("common", "frequent"):
            raise wrong("WordCount: law", repr(self.law), "common or frequent")
        if self.repeats < 2 or self.vocabulary < 4 or not self.alpha > 1:
            came = f"{self.repeats}, {self.vocabulary}, {self.alpha}"
            raise wrong("WordCount: repeats, vocabulary, alpha", came, "at least 2, at least 4, above 1")

    @property
    def chance(self) -> float:
        """One of the words."""
        return 1 / (self.vocabulary - 2)

    def sample(self, generator: Generator, length: int) -> Example:
        """One sequence of ``length`` tokens, the answer last."""
        words, room = 2 + torch.randperm(self.vocabulary - 2, generator=generator), length - 2
        if self.law == "common":
            others = room - self.repeats
            check_length(length, self.repeats + 2, "WordCount")
            if others > (len(words) - 1) * (self.repeats - 1):
                raise wrong("WordCount: length", f"{length} tokens", "fewer, more words, or more repeats")
            rest = words[1:].repeat(self.repeats - 1)
            listed = torch.cat([words[:1].repeat(self.repeats), rest[:others]])
        else:
            check_length(length, 5, "WordCount")
            law = torch.arange(1, len(words) + 1, dtype=torch.float64) ** -self.alpha
            listed = words[torch.multinomial(law, room, replacement=True, generator=generator)]
            first, second = listed.bincount(minlength=self.vocabulary).topk(2).values.tolist()
            if first == second:  # a tie has no answer: the commonest takes one place of another
                listed[(listed != listed.mode().values).nonzero()[0]] = listed.mode().values
        listed = listed[torch.randperm(room, generator=generator)]
        ids = torch.cat([listed, torch.tensor([ASK]), listed.mode().values[None]])
        return Example(ids, torch.arange(length) == length - 1)


def scattered(triples: Tensor, low: int, high: int, room: int, generator: Generator) -> Tensor:
    """``(room,)``: the rows of ``triples`` in order, each in one piece, among random ids from ``[low, high)``."""
    units = room - len(triples) * (triples.shape[1] - 1)
    first = torch.randperm(units, generator=generator)[: len(triples)].sort().values
    starts = first + torch.arange(len(triples)) * (triples.shape[1] - 1)
    context = torch.randint(low, high, (room,), generator=generator)
    context[starts[:, None] + torch.arange(triples.shape[1])] = triples
    return context
