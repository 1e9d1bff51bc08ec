"""Drawn English sentences with their dependency trees, in which what depends on what stands at many distances."""

from __future__ import annotations

from random import Random
from typing import Any

import torch

from regard.analysis.relation_heads import Sentence
from regard.analysis.word_probe import Mentions

NOUNS = (
    "teacher",
    "dog",
    "king",
    "doctor",
    "farmer",
    "letter",
    "garden",
    "child",
    "river",
    "captain",
    "bird",
    "friend",
)
ADJECTIVES = ("old", "young", "quiet", "small", "angry", "famous", "happy", "strange")
VERBS = ("saw", "followed", "found", "watched", "helped", "painted", "visited", "remembered")
ADVERBS = ("slowly", "often", "quickly", "never", "always", "suddenly")
PREPOSITIONS = ("near", "behind", "with", "without", "beside")
RELATIONS = ("det", "amod", "nsubj", "dobj", "prep", "pobj", "advmod")
"""Those that are measured."""
Word = tuple[str, int, str]
"""A word, its head's index, and its relation to it."""


def noun_phrase(draw: Random, at: int, head: int, relation: str) -> list[Word]:
    """An article, up to two adjectives, and a noun, which begin at index ``at``."""
    adjectives = draw.sample(ADJECTIVES, draw.randrange(3))
    noun = at + 1 + len(adjectives)
    words = [(draw.choice(("the", "a")), noun, "det"), *((word, noun, "amod") for word in adjectives)]
    return [*words, (draw.choice(NOUNS), head, relation)]


def prepositional(draw: Random, at: int, head: int) -> list[Word]:
    """A preposition and what it governs."""
    return [(draw.choice(PREPOSITIONS), head, "prep"), *noun_phrase(draw, at + 1, at, "pobj")]


def words(draw: Random) -> list[Word]:
    """A sentence: subject, perhaps with an attribute, adverb, verb, object, and perhaps where."""
    subject = noun_phrase(draw, 0, -1, "nsubj")
    noun = len(subject) - 1
    if draw.random() < 0.5:
        subject += prepositional(draw, len(subject), noun)
    adverb = draw.random() < 0.5
    verb = len(subject) + adverb
    subject[noun] = (subject[noun][0], verb, "nsubj")
    found = [*subject, *([(draw.choice(ADVERBS), verb, "advmod")] * adverb), (draw.choice(VERBS), -1, "")]
    found += noun_phrase(draw, len(found), verb, "dobj")
    if draw.random() < 0.5:
        found += prepositional(draw, len(found), verb)
    return found


def sentences(tokenizer: Any, count: int, seed: int) -> list[Sentence]:
    """So many, with the tokenizer's own tokens around them."""
    draw, found = Random(seed), []
    for _ in range(count):
        texts, heads, relations = zip(*words(draw), strict=True)
        told = tokenizer(list(texts), is_split_into_words=True)
        slots = [tuple(i for i, of in enumerate(told.word_ids()) if of == at) for at in range(len(texts))]
        found.append(Sentence(torch.tensor(told.input_ids), tuple(slots), heads, relations))
    return found


PEOPLE = {"he": ("king", "boy", "uncle", "brother", "father"), "she": ("queen", "girl", "aunt", "sister", "mother")}
REASONS = ("was late", "had a letter", "knew the way", "was ill", "lost a key")


def referring(tokenizer: Any, count: int, seed: int) -> list[Mentions]:
    """Sentences about a man and a woman in either order, and a pronoun for one of them."""
    draw, found = Random(seed), []
    for _ in range(count):
        people = [(of, draw.choice(names)) for of, names in PEOPLE.items()]
        draw.shuffle(people)
        which = draw.randrange(2)
        (_, one), (_, other), who = *people, people[which][0]
        text = f"the {one} {draw.choice(VERBS)} the {other} because {who} {draw.choice(REASONS)}"
        told = tokenizer(text.split(), is_split_into_words=True)
        words = [tuple(i for i, of in enumerate(told.word_ids()) if of == at) for at in range(len(text.split()))]
        found.append(Mentions(torch.tensor(told.input_ids), tuple(words), ((6, (1, 4)[which], (1, 4)),)))
    return found
