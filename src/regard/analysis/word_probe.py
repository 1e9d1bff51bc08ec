"""A probe of all heads that also reads the words, and heads that find what a pronoun stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Analysis, Head, Result
from regard.analysis.head_divergence import every_map
from regard.analysis.relation_heads import word_map
from regard.core.errors import wrong
from regard.core.kinds import Sample


@dataclass(frozen=True)
class WordProbe:
    """A probe that weighs every head by the two words it is between: softmax over j ≠ i of Σ_m c_m(i, j) M^m_ij.

        c(i, j) = v_i K + v_j L + b,   M: the maps of all heads, then the same transposed

    Args:
        own, other: K and L, ``(channels, 2 heads)``. bias: b, ``(2 heads,)``.
    """

    own: Tensor
    other: Tensor
    bias: Tensor

    def scores(self, maps: Tensor, vectors: Tensor) -> Tensor:
        """``(words, words)``, −∞ on the diagonal; maps ``(heads, words, words)``, vectors ``(words, channels)``."""
        both = torch.cat([maps, maps.mT]).to(self.own.dtype)
        v = vectors.to(self.own.dtype)
        first, second = v @ self.own + self.bias, v @ self.other  # (words, 2 heads) each
        mixed = torch.einsum("im,mij->ij", first, both) + torch.einsum("jm,mij->ij", second, both)
        return mixed.masked_fill(torch.eye(len(mixed), dtype=torch.bool), -torch.inf)

    def right(self, maps: Sequence[Tensor], vectors: Sequence[Tensor], heads: Sequence[Sequence[int]]) -> float:
        """The share of words with a head for which it is found."""
        found, known = [], []
        for of, words, gold in zip(maps, vectors, heads, strict=True):
            found.append(self.scores(of, words).argmax(1) == torch.tensor(gold))
            known.append(torch.tensor(gold) >= 0)
        return float(torch.cat(found)[torch.cat(known)].double().mean())


def word_probe(
    maps: Sequence[Tensor],
    vectors: Sequence[Tensor],
    heads: Sequence[Sequence[int]],
    steps: int = 60,
    decay: float = 1e-3,
) -> WordProbe:
    """The probe that makes the heads of words likeliest, found by L-BFGS: the loss is convex.

    Args:
        maps: of each sentence ``(heads, words, words)``. vectors: of its words, whatever these are, ``(words,
            channels)``. heads: index of each word's head, -1 for none. decay: times the squared weights.

    Raises:
        ValueError: no sentences, or not as many trees or words.

    Paper: Clark et al., arXiv 1906.04341; the coefficients and their bias as in the authors' code, which trains by Adam
    and has a column for the root.
    """
    if not maps or not len(maps) == len(heads) == len(vectors):
        what = f"{len(heads)} and {len(vectors)} for {len(maps)} sentences"
        raise wrong("heads, vectors", what, "one tree and one set of words for each of at least one")
    width, count = vectors[0].shape[1], 2 * len(maps[0])
    weights = torch.zeros(2 * width + 1, count, dtype=torch.float64, requires_grad=True)
    gold = [torch.tensor(tree) for tree in heads]
    optimiser = torch.optim.LBFGS([weights], max_iter=steps, line_search_fn="strong_wolfe")

    def probe() -> WordProbe:
        return WordProbe(weights[:width], weights[width:-1], weights[-1])

    def loss() -> Tensor:
        optimiser.zero_grad()
        parts = [
            probe().scores(of, words).log_softmax(1)[torch.arange(len(tree)), tree.clamp(min=0)][tree >= 0]
            for of, words, tree in zip(maps, vectors, gold, strict=True)
        ]
        value = -torch.cat(parts).mean() + decay * weights.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    found = weights.detach()
    return WordProbe(found[:width], found[width:-1], found[-1])


@dataclass(frozen=True)
class Mentions:
    """A text with words that stand for others.

    Args:
        ids: ``(n,)`` tokens. words: slots of each word's pieces. mentions: of each the word, what it stands for, and
            the words that it might, that one among them: all before it.
    """

    ids: Tensor
    words: tuple[tuple[int, ...], ...]
    mentions: tuple[tuple[int, int, tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        for word, gold, candidates in self.mentions:
            if gold not in candidates or not all(0 <= at < word < len(self.words) for at in candidates):
                what = f"word {word} for {gold} of {candidates}"
                raise wrong("mentions", what, "candidates before the word, what it stands for among them")


@dataclass(frozen=True)
class AntecedentScores(Result):
    """How often each head finds what a word stands for.

    Args:
        hits: ``(layers, heads)``. nearest, first: how often the nearest candidate, and the first, is it. total: of all.
    """

    hits: Tensor
    nearest: int
    first: int
    total: int
    name = "antecedents"

    def merge(self, other: AntecedentScores) -> AntecedentScores:
        """The mentions of both.

        Raises:
            ValueError: other heads.
        """
        if self.hits.shape != other.hits.shape:
            raise wrong("other", f"heads {tuple(other.hits.shape)}", f"{tuple(self.hits.shape)}")
        counts = (self.nearest + other.nearest, self.first + other.first, self.total + other.total)
        return AntecedentScores(self.hits + other.hits, *counts)

    def best(self) -> tuple[Head, float]:
        """The head that finds it most often, and how often."""
        layer, head = (int(i) for i in torch.unravel_index(self.hits.argmax(), self.hits.shape))
        return (layer, head), float(self.hits[layer, head]) / self.total

    def of(self, head: Head) -> float:
        """How often one head finds it."""
        return float(self.hits[head]) / self.total

    def table(self) -> list[dict[str, Any]]:
        rows = [(layer, head) for layer in range(self.hits.shape[0]) for head in range(self.hits.shape[1])]
        more = {"nearest": self.nearest / self.total, "first": self.first / self.total}
        return [{"layer": layer, "head": head, "accuracy": self.of((layer, head)), **more} for layer, head in rows]


class AntecedentHeads(Analysis[Mentions, AntecedentScores]):
    """Accuracy of each head in choosing what a word stands for: the candidate that the word gives most weight.

    A is between words (`word_map`). Against it stand the nearest candidate and the first.

    Paper: Clark et al., arXiv 1906.04341, section 4.3, which measures on CoNLL's mentions.

    Raises:
        ValueError: in a run no mentions.
    """

    name = "antecedents"

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("by hand", cls(), {"known": by_hand})]

    def run(self, subject: Any, data: Iterable[Mentions]) -> AntecedentScores:
        found: AntecedentScores | None = None
        for text in data:
            maps = torch.stack([word_map(of, text.words) for of in every_map(subject, text.ids)])
            one = antecedents(maps, text)
            found = one if found is None else found.merge(one)
        if found is None or not found.total:
            raise wrong("data", "no mentions", "at least one")
        return found


def antecedents(maps: Tensor, text: Mentions) -> AntecedentScores:
    """Counts over one text's ``maps (layers, heads, words, words)``."""
    hits, nearest, first = torch.zeros(maps.shape[:2], dtype=torch.float64), 0, 0
    for word, gold, candidates in text.mentions:
        chosen = torch.tensor(candidates)[maps[:, :, word, list(candidates)].argmax(2)]
        hits += (chosen == gold).double()
        nearest, first = nearest + (max(candidates) == gold), first + (min(candidates) == gold)
    return AntecedentScores(hits, nearest, first, len(text.mentions))


def by_hand() -> tuple[Tensor, Tensor]:
    """Four words, of which the last stands for the first; it might for the second. One head of two finds it."""
    maps = torch.full((1, 2, 4, 4), 0.1)
    maps[0, 0, 3, 0], maps[0, 1, 3, 1] = 0.5, 0.5
    maps[0, 0, 3, 2] = 0.9  # no candidate
    text = Mentions(torch.arange(4), ((0,), (1,), (2,), (3,)), ((3, 0, (0, 1)),))
    found = antecedents(maps, text)
    counts = torch.tensor([found.nearest, found.first, found.total]).double()
    return torch.cat([found.hits.flatten(), counts]), torch.tensor([1, 0, 0, 1, 1]).double()
