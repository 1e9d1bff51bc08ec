"""CIDEr-D: how much of what is particular to an image a caption says as its references do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from regard.core.errors import wrong

Words = Sequence[int]
Grams = Counter[tuple[int, ...]]
MOST, WIDE, TIMES = 4, 6.0, 10.0
"""Words of the longest n-grams, the width of the length penalty, and the factor of the score."""


def grams(words: Words, n: int) -> Grams:
    """How often each n-gram comes."""
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


class Cider:
    """The score of captions against references, one for each image.

        g_k = count_k · log(images / images whose reference has k)
        score = 10 · exp(−(|c| − |r|)² / 2 · 6²) · mean_{n=1..4} Σ_k min(g_k(c), g_k(r)) g_k(r) / (|g(c)| |g(r)|)

    Args:
        known: references by which n-grams are weighed, one for each image.

    Raises:
        ValueError: no references.

    Paper: Vedantam, Zitnick and Parikh, arXiv 1411.5726.
    """

    known: Sequence[Words]

    def __init__(self, known: Sequence[Words]) -> None:
        if not known:
            raise wrong("known", "no references", "at least one")
        self.total, self.images = len(known), Grams()
        for words in known:
            self.images.update({gram for n in range(1, MOST + 1) for gram in grams(words, n)})

    def weighed(self, words: Words, n: int) -> dict[tuple[int, ...], float]:
        """g of the n-grams of a caption."""
        rare = ((gram, count, self.total / max(self.images[gram], 1)) for gram, count in grams(words, n).items())
        return {gram: count * math.log(rarity) for gram, count, rarity in rare}

    def score(self, told: Words, reference: Words) -> float:
        """Of one caption."""
        parts = []
        for n in range(1, MOST + 1):
            own, other = self.weighed(told, n), self.weighed(reference, n)
            sizes = math.hypot(*own.values()) * math.hypot(*other.values())
            shared = sum(min(own[gram], other[gram]) * other[gram] for gram in own.keys() & other.keys())
            parts.append(shared / sizes if sizes else 0.0)
        penalty = math.exp(-((len(told) - len(reference)) ** 2) / (2 * WIDE**2))
        return TIMES * penalty * sum(parts) / MOST
