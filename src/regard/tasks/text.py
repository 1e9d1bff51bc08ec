"""Tasks written in plain English, for any tokenizer: names, colours, pass keys, labels, documents.

Each task writes *episodes*: short texts whose answers are known. `Packed` tasks fill the sequence with one episode
after another; `Passkey` and `DocumentQuestion` spread one episode over the whole length. Texts are encoded piece by
piece, so that an answer is always whole tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator

from regard.tasks.example import Encode, Example, check_length, choose, draw, pick
from regard.tasks.lexicon import CITIES, COLOURS, FILLER, FOODS, JOBS, KINDS, LABELS, NAMES, OBJECTS, PLACES


class Piece(NamedTuple):
    """A piece of text; `answer` marks what is to be predicted."""

    text: str
    answer: bool = False


@dataclass(frozen=True)
class TextTask:
    """What the text tasks share: an encoder, and an id that begins the sequence (None for none)."""

    encode: Encode
    bos: int | None = None

    def _encode(self, pieces: Iterable[Piece]) -> list[tuple[int, bool]]:
        return [(i, piece.answer) for piece in pieces for i in self.encode(piece.text)]

    def _example(self, tokens: Sequence[tuple[int, bool]], length: int) -> Example:
        """The last tokens of the text, behind the beginning: always exactly `length`, always ending with its end."""
        head = [] if self.bos is None else [(self.bos, False)]
        ids, answers = zip(*head, *tokens[len(tokens) - (length - len(head)) :], strict=True)
        return Example(torch.tensor(ids), torch.tensor(answers))

    def _room(self, length: int) -> int:
        check_length(length, 2, type(self).__name__)
        return length - (self.bos is not None)

    def _filler(self, generator: Generator, room: int) -> list[tuple[int, bool]]:
        tokens: list[tuple[int, bool]] = []
        while len(tokens) < room:
            tokens += self._encode([Piece(f" {pick(generator, FILLER)}")])
        return tokens[:room]


@dataclass(frozen=True)
class Packed(TextTask):
    """Fills the sequence with episodes; the first one is cut at its beginning and asks for nothing."""

    def episode(self, generator: Generator) -> list[Piece]:
        """One short text with its answers."""
        raise NotImplementedError

    def sample(self, generator: Generator, length: int) -> Example:
        """Episodes up to exactly `length` tokens."""
        room, tokens = self._room(length), []
        while len(tokens) + len(episode := self._encode(self.episode(generator))) <= room:
            tokens += episode
        if not tokens:
            check_length(length, length - room + len(episode), type(self).__name__)
        cut = [(i, False) for i, _ in episode]
        return self._example([*cut, *tokens], length)


@dataclass(frozen=True)
class IndirectObject(Packed):
    """Indirect object identification: of two names, the one that is not the giver.

    "When Mary and John went to the park, John gave a book to" → " Mary" (Wang et al. 2022, arXiv 2211.00593).
    """

    def episode(self, generator: Generator) -> list[Piece]:
        """One sentence; its last name is the answer."""
        giver, receiver = choose(generator, NAMES, 2)
        first, second = choose(generator, (giver, receiver), 2)
        place, thing = pick(generator, PLACES), pick(generator, OBJECTS)
        text = f"When {first} and {second} went to the {place}, {giver} gave a {thing} to"
        return [Piece(text), Piece(f" {receiver}", answer=True), Piece(".\n")]


@dataclass(frozen=True)
class ColouredObjects(Packed):
    """Coloured objects on a table; the colour of one of them is asked for (as in BIG-bench's task of this name).

    objects: how many lie on the table.
    """

    objects: int = 3

    def episode(self, generator: Generator) -> list[Piece]:
        """One table; the colour is the answer."""
        things = choose(generator, OBJECTS, self.objects)
        colours = choose(generator, COLOURS, self.objects)
        listed = ", ".join(f"a {c} {t}" for c, t in zip(colours, things, strict=True))
        asked = draw(generator, len(things))
        question = f"On the table there is {listed}. What colour is the {things[asked]}? It is"
        return [Piece(question), Piece(f" {colours[asked]}", answer=True), Piece(".\n")]


@dataclass(frozen=True)
class FewShot(Packed):
    """Few-shot classification: words of a few kinds (animals, tools …), each kind with a made-up label.

    Which label stands for which kind changes with every episode, so only the examples tell it. An answer counts from
    the second word of a kind on.

    kinds: how many classes; shots: how many words in an episode.
    """

    kinds: int = 2
    shots: int = 8

    def episode(self, generator: Generator) -> list[Piece]:
        """One list of labelled words."""
        labels = dict(
            zip(choose(generator, list(KINDS), self.kinds), choose(generator, LABELS, self.kinds), strict=True)
        )
        seen: set[str] = set()
        pieces = [Piece("Labels:\n")]
        for _ in range(self.shots):
            kind = pick(generator, list(labels))
            pieces += [
                Piece(f" {pick(generator, KINDS[kind])} ->"),
                Piece(f" {labels[kind]}", kind in seen),
                Piece("\n"),
            ]
            seen.add(kind)
        return pieces


@dataclass(frozen=True)
class Passkey(TextTask):
    """A pass key hidden in filler, asked for at the end (Mohtashami & Jaggi 2023, arXiv 2305.16300).

    digits: how many the key has; depth: where it stands, 0 at the beginning, 1 at the end; None for anywhere.
    """

    digits: int = 5
    depth: float | None = None

    def sample(self, generator: Generator, length: int) -> Example:
        """Filler, the key, filler, the question, the key again as the answer."""
        key = "".join(str(draw(generator, 10)) for _ in range(self.digits))
        hidden = self._encode([Piece(f" The pass key is {key}. Remember it.")])
        question = self._encode([Piece(" What is the pass key? The pass key is"), Piece(f" {key}", answer=True)])
        room = self._room(length) - len(hidden) - len(question)
        check_length(length, length - room, "Passkey")
        filler = self._filler(generator, room)
        at = draw(generator, room + 1) if self.depth is None else round(self.depth * room)
        return self._example([*filler[:at], *hidden, *filler[at:], *question], length)


@dataclass(frozen=True)
class DocumentQuestion(TextTask):
    """Documents, each about one person, then questions whose answers each stand in one of them.

    questions: how many are asked at the end, about different people.
    """

    questions: int = 1

    def sample(self, generator: Generator, length: int) -> Example:
        """As many documents as fit, then the questions."""
        people = choose(generator, NAMES, len(NAMES))
        facts = {name: _facts(generator) for name in people}
        documents = [self._encode(_document(name, facts[name])) for name in people]
        room = self._room(length)
        longest = max(map(len, documents))  # no question is longer than a document
        kept = _fitting(documents, room - self.questions * longest)
        check_length(length, length - room + 2 * self.questions * longest, "DocumentQuestion")
        told = [token for document in documents[:kept] for token in document]
        asked = choose(generator, people[:kept], self.questions)
        told += [t for name in asked for t in self._encode(_question(generator, name, facts[name]))]
        return self._example([*self._filler(generator, room - len(told)), *told], length)


def _facts(generator: Generator) -> dict[str, str]:
    return {"lives in": pick(generator, CITIES), "works as a": pick(generator, JOBS), "likes": pick(generator, FOODS)}


def _document(name: str, facts: dict[str, str]) -> list[Piece]:
    sentences = " ".join(f"{name} {relation} {value}." for relation, value in facts.items())
    return [Piece(f"\nDocument: {sentences}")]


def _question(generator: Generator, name: str, facts: dict[str, str]) -> list[Piece]:
    relation = pick(generator, list(facts))
    return [Piece(f"\nQuestion: {name} {relation}"), Piece(f" {facts[relation]}", answer=True), Piece(".")]


def _fitting(documents: list[list[tuple[int, bool]]], room: int) -> int:
    """How many documents, from the first, fit into `room` tokens."""
    sizes = torch.tensor([len(document) for document in documents])
    return int((sizes.cumsum(0) <= room).sum())
