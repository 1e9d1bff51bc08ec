"""Search by need: which entries of the atlas answer a few words of a person."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

E = TypeVar("E")  # an entry: name, aliases, title, summary, family, kind, said, traits

EMPTY = """a an and are as at attention by for from how i in into is it its my of on or that the this to which with
without"""
STOP_WORDS = frozenset(EMPTY.split())
ENDINGS = ("ations", "ation", "ings", "ing", "ers", "er", "ies", "ed", "es", "s", "ity", "al", "ally", "ive", "e")
MEANS = {
    "cheap": "linear fast sparse efficient constant",
    "fast": "linear sparse efficient fused speed",
    "speed": "fast linear fused",
    "efficient": "linear fast sparse",
    "long": "length linear window context extrapolation",
    "context": "length long text",
    "document": "text long packed",
    "memory": "state cache constant bytes",
    "cache": "state kv memory decoding",
    "decode": "decoding state cache token",
    "stream": "constant state decoding sinks",
    "image": "vision picture patch",
    "picture": "image vision",
    "cpu": "fast linear cheap",
    "explain": "attribution implicit reading",
    "forget": "decay gate",
    "recall": "delta rule state associative",
    "position": "bias distance rotary extrapolation",
    "hallucination": "visual steer image faithful",
    "classify": "classification",
    "train": "training length",
    "quality": "loss accuracy",
    "head": "heads multi",
}
"""What people ask for, in words that papers use: each counts half."""
TRAITS = {
    ("time", "linear"): "linear time cheap fast long context",
    ("time", "loglinear"): "subquadratic time cheap fast long context",
    ("state", "constant"): "constant state memory decoding cheap streaming",
    ("causal", False): "bidirectional only",
    ("packed", False): "one document",
    ("rows", "one"): "normalised weights",
}
"""Words for what a mechanism's traits say."""
WEIGHTS = (4.0, 2.0, 1.5, 1.0, 0.5)
"""Of a word in name and aliases, title, summary, traits with family and kind, and claim."""


def ranked(query: str, among: Iterable[E]) -> list[E]:
    """Those that share words, or words of like meaning, with ``query``, best first; rare words count more."""
    everything = list(among)
    shelves = [[stems(text) for text in texts(entry)] for entry in everything]
    rarity = weigh(shelves)
    wanted = dict.fromkeys(stems(query), 1.0)
    means = {stemmed(word): said for word, said in MEANS.items()}
    near = {near for stem in stems(query) for near in stems(means.get(stem, ""))}
    wanted = dict.fromkeys(near, 0.5) | wanted
    scored = [(relevance(fields, wanted, rarity), entry) for fields, entry in zip(shelves, everything, strict=True)]
    found = [(score, entry) for score, entry in scored if score > 0]
    return [entry for _, entry in sorted(found, key=lambda pair: (-pair[0], getattr(pair[1], "name", "")))]


def texts(entry: Any) -> list[str]:
    """What is said of an entry, the weightiest first."""
    about = " ".join(said for (name, value), said in TRAITS.items() if entry.traits.get(name) == value)
    names = f"{entry.name.replace('_', ' ')} {' '.join(entry.aliases).replace('_', ' ')}"
    return [names, entry.title, entry.summary, f"{about} {entry.family} {entry.kind}", entry.said]


def weigh(shelves: list[list[list[str]]]) -> Mapping[str, float]:
    """The inverse document frequency of each stem."""
    counts = Counter(stem for fields in shelves for stem in {stem for field in fields for stem in field})
    return {stem: math.log(1 + len(shelves) / count) for stem, count in counts.items()}


def relevance(fields: list[list[str]], wanted: Mapping[str, float], rarity: Mapping[str, float]) -> float:
    """The sum over wanted stems of their rarity times the weight of the best field that has them, or begins so."""
    score = 0.0
    for stem, weight in wanted.items():
        best = 0.0
        for field, share in zip(fields, WEIGHTS, strict=True):
            for have in field:
                if (
                    have == stem
                    or (len(stem) > 3 and have.startswith(stem))
                    or (len(have) > 3 and stem.startswith(have))
                ):
                    best = max(best, share * rarity[have])
        score += weight * best
    return score


def words(text: str) -> list[str]:
    """The text's words in lower case, without those that carry no meaning."""
    return [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in STOP_WORDS]


def stems(text: str) -> list[str]:
    """The stems of `words`."""
    return [stemmed(word) for word in words(text)]


def stemmed(word: str) -> str:
    """A crude English stem: enough that ``decaying``, ``decayed`` and ``decays`` meet."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word
