"""Search by need: which entries of the atlas answer a few words of a person."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

E = TypeVar("E")  # an entry: name, aliases, title, summary, family, kind, said, traits

EMPTY = """a an and are as at attend attention by can do does for from how i in into is it its make me model more my
need of on one or out over read run see several than that the this to use want was what when which while with without"""
STOP_WORDS = frozenset(EMPTY.split())
ENDINGS = ("ations", "ation", "ings", "ing", "ers", "er", "ies", "ed", "es", "s", "ity", "al", "ally", "ive", "e")
MEANS = {
    "align": "alignment monotonic",
    "bits": "codec quantise integers",
    "cache": "kv policy state decoding",
    "caption": "captioning image",
    "cheap": "linear fast sparse efficient constant",
    "circuit": "patching path heads sites",
    "classify": "classification",
    "cnn": "convolution convolutional gate",
    "compress": "policy codec quantise budget",
    "context": "length long text",
    "copy": "induction",
    "cpu": "fast linear cheap",
    "cure": "decoding edit mitigate",
    "decode": "decoding state cache token",
    "detect": "detector neck objects",
    "document": "text long packed",
    "efficient": "linear fast sparse",
    "endless": "streaming constant state infinite",
    "explain": "attribution implicit importance flow",
    "extrapolate": "extrapolation lengths longer beyond",
    "fast": "linear sparse efficient fused speed",
    "follow": "focus steer edit",
    "forget": "decay gate",
    "generate": "decoding policy cache",
    "gpu": "parallel ring kernel devices",
    "gpus": "parallel ring kernel devices",
    "hallucinate": "hallucination hallucinated faithful contrast",
    "image": "vision picture patch",
    "instruction": "focus steer prompt edit",
    "long": "length linear window context extrapolation",
    "matter": "importance relevance attribution saliency flow",
    "memory": "state cache constant bytes",
    "merge": "average pool",
    "middle": "position lost calibrate",
    "parameter": "shared latent low rank",
    "patch": "vision image transformer registers",
    "picture": "image vision",
    "position": "bias distance rotary extrapolation",
    "prune": "pruning importance gating",
    "quadratic": "linear subquadratic",
    "quality": "loss accuracy",
    "recall": "delta rule state associative",
    "retrieve": "retrieval needle",
    "scale": "pyramid neck levels",
    "segment": "segmentation",
    "small": "cheap compress evict budget policy",
    "speed": "fast linear fused",
    "stream": "constant state decoding sinks",
    "train": "training length",
    "translate": "translator translation encoder",
}
"""What people ask for, in words that papers use: each counts half."""
TRAITS = {
    ("time", "linear"): "linear time cheap fast long context",
    ("time", "loglinear"): "subquadratic time cheap fast long context",
    ("time", "subquadratic"): "subquadratic time cheap long context",
    ("state", "constant"): "constant state memory decoding cheap streaming",
    ("causal", False): "bidirectional only",
    ("packed", False): "one document",
    ("rows", "one"): "normalised weights",
}
"""Words for what a mechanism's traits say."""
WEIGHTS = (4.0, 2.0, 2.0, 1.5, 1.0, 0.5)
"""Of a word in name and aliases, title, what traits say, which laws hold to and a title only promises, summary, family
and kind, and claim."""
BEGUN = 0.7
"""The weight of a word that only begins like the one that is asked for."""


def ranked(query: str, among: Iterable[E]) -> list[E]:
    """Those that answer ``query``, best first: rare words count more, and so do entries that answer more of its words.

    A word is answered by itself or, at half its weight, by one of `MEANS`.
    """
    everything = list(among)
    shelves = [[stems(text) for text in texts(entry)] for entry in everything]
    rarity = weigh(shelves)
    means = {stemmed(word): stems(said) for word, said in MEANS.items()}
    asked = [dict.fromkeys(means.get(stem, []), 0.5) | {stem: 1.0} for stem in dict.fromkeys(stems(query))]
    scored = [(relevance(fields, asked, rarity), entry) for fields, entry in zip(shelves, everything, strict=True)]
    found = [(score, entry) for score, entry in scored if score > 0]
    return [entry for _, entry in sorted(found, key=lambda pair: (-pair[0], getattr(pair[1], "name", "")))]


def texts(entry: Any) -> list[str]:
    """What is said of an entry, the weightiest first."""
    about = " ".join(said for (name, value), said in TRAITS.items() if entry.traits.get(name) == value)
    names = f"{entry.name.replace('_', ' ')} {' '.join(entry.aliases).replace('_', ' ')}"
    return [names, entry.title, about, entry.summary, f"{entry.family} {entry.kind}", entry.said]


def weigh(shelves: list[list[list[str]]]) -> Mapping[str, float]:
    """The inverse document frequency of each stem."""
    counts = Counter(stem for fields in shelves for stem in {stem for field in fields for stem in field})
    return {stem: math.log(1 + len(shelves) / count) for stem, count in counts.items()}


def relevance(fields: list[list[str]], asked: list[dict[str, float]], rarity: Mapping[str, float]) -> float:
    """The sum over what is asked of its best answer, times the share of it that is answered at all.

    Args:
        asked: for each word the stems that answer it, with their weights.
    """
    answers = [
        max(weight * answer(fields, stem, rarity, weight == 1) for stem, weight in word.items()) for word in asked
    ]
    return sum(answers) * sum(found > 0 for found in answers) / max(len(answers), 1)


def answer(fields: list[list[str]], stem: str, rarity: Mapping[str, float], loose: bool) -> float:
    """A stem's rarity times the weight of the best field that has it; less, if ``loose``, where one only begins so.

    What only begins so is no rarer than what is asked for: a name that begins with a common word says no more by that.
    """
    best = 0.0
    for field, share in zip(fields, WEIGHTS, strict=True):
        for have in field:
            if have == stem:
                best = max(best, share * rarity[have])
            elif loose and min(len(stem), len(have)) > 3 and (have.startswith(stem) or stem.startswith(have)):
                best = max(best, BEGUN * share * min(rarity[have], rarity.get(stem, math.inf)))
    return best


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
