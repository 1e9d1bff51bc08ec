"""A 5-gram model, the baseline beside which the small model's loss is reported.

Interpolated Witten–Bell: p(w | h) = (c(h w) + t(h) p(w | h')) / (c(h) + t(h)), where h' is h without its oldest
token, c counts in the training text, and t(h) is how many different tokens followed h. Below the unigram stands the
uniform distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from regard.core.errors import wrong

Array = np.ndarray


@dataclass(frozen=True)
class Counts:
    """How often each context was followed by each token; an n-gram is one integer, its tokens its digits.

    grams, gram_counts: sorted n-grams and their counts. contexts, totals, kinds: sorted contexts, c(h) and t(h).
    """

    grams: Array
    gram_counts: Array
    contexts: Array
    totals: Array
    kinds: Array


@dataclass(frozen=True)
class NGram:
    """Token probabilities from counts of orders 1 to len(orders)."""

    orders: tuple[Counts, ...]
    vocabulary: int

    def probabilities(self, stream: Array) -> Array:
        """p(token | those before it) for each token of the stream; the first ones use shorter contexts."""
        p = np.full(len(stream), 1 / self.vocabulary)
        for order, counts in enumerate(self.orders, start=1):
            p[order - 1 :] = self._interpolate(counts, _grams(stream, order, self.vocabulary), p[order - 1 :])
        return p

    def _interpolate(self, counts: Counts, grams: Array, lower: Array) -> Array:
        contexts = grams // self.vocabulary
        seen = _look_up(counts.grams, counts.gram_counts, grams)
        total = _look_up(counts.contexts, counts.totals, contexts)
        kinds = _look_up(counts.contexts, counts.kinds, contexts)
        return np.where(total > 0, (seen + kinds * lower) / np.maximum(total + kinds, 1), lower)


def fit(stream: Array, vocabulary: int, order: int = 5) -> NGram:
    """Counts the n-grams of a stream of token ids below `vocabulary`."""
    if vocabulary**order >= 2**63:
        raise wrong("order", f"{order} with vocabulary {vocabulary}", "vocabulary ** order < 2 ** 63")
    return NGram(tuple(_count(stream, n, vocabulary) for n in range(1, order + 1)), vocabulary)


def _count(stream: Array, order: int, vocabulary: int) -> Counts:
    grams, gram_counts = np.unique(_grams(stream, order, vocabulary), return_counts=True)
    contexts, first, kinds = np.unique(grams // vocabulary, return_index=True, return_counts=True)
    return Counts(grams, gram_counts, contexts, np.add.reduceat(gram_counts, first), kinds)


def _grams(stream: Array, order: int, vocabulary: int) -> Array:
    """Each run of `order` tokens as one integer, the last token being the lowest digit."""
    count = len(stream) - order + 1
    grams = np.zeros(count, dtype=np.int64)
    for i in range(order):
        grams = grams * vocabulary + stream[i : i + count]
    return grams


def _look_up(keys: Array, values: Array, wanted: Array) -> Array:
    """values[keys == wanted], 0 where there is no such key; keys are sorted."""
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
