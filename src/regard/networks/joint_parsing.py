"""A parser of constituents that also says which word each word depends on, and the best tree of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.networks.label_attention import SpanParser, sentences


class HeadScores(nn.Module):
    """Biaffine scores of heads, and bilinear ones of the types of dependents.

        s_ij = [relu(D x_i); 1]ᵀ U [relu(H x_j); 1]   of i's head being j,   t_i = uᵀ T v + A u + B v + c
        u = relu(P x_i),   v = relu(Q x_i)

    Shapes: ``x (b, n, c)`` -> ``(b, n, n)`` and ``(b, n, types)``. The first of x stands for what a root depends on.

    Args:
        channels: c. hidden: of all four maps. types: of dependents.

    Paper: Dozat and Manning, arXiv 1611.01734, as in the code of Mrini et al., arXiv 1911.03875.
    """

    def __init__(self, channels: int, hidden: int, types: int) -> None:
        super().__init__()
        self.head, self.dependent = nn.Linear(channels, hidden), nn.Linear(channels, hidden)
        self.pair = nn.Parameter(nn.init.xavier_uniform_(torch.empty(hidden + 1, hidden + 1)))
        self.from_head, self.from_dependent = nn.Linear(channels, hidden), nn.Linear(channels, hidden)
        self.both = nn.Bilinear(hidden, hidden, types)
        self.one, self.other = (nn.Linear(hidden, types, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        heads, dependents = (F.pad(F.relu(each(x)), (0, 1), value=1.0) for each in (self.head, self.dependent))
        u, v = F.relu(self.from_head(x)), F.relu(self.from_dependent(x))
        return dependents @ self.pair.mT @ heads.mT, self.both(u, v) + self.one(u) + self.other(v)


@dataclass(frozen=True)
class Tree:
    """A tree over n words: ``labels (n + 1, n + 1)`` of spans between fences, from 1, 0 for none; ``heads (n,)`` of the
    words, counted from 1, 0 for the root; and its ``score``."""

    labels: Tensor
    heads: Tensor
    score: float


class JointParser(SpanParser):
    """`SpanParser` with `HeadScores` of the fences: fence i also stands for word i, the first for the root.

    Shapes: ``words (b, n + 2)`` ids -> spans ``(b, n + 1, n + 1, labels)``, heads ``(b, n + 1, n + 1)``, types
    ``(b, n + 1, types)``.

    Args:
        words, labels, width, projected, attention, longest, seed, apart: as in `SpanParser`. types: of dependents.
        hidden: of the scores of heads.

    Paper: Mrini et al., arXiv 1911.03875; the tree of both after Zhou and Zhao, arXiv 1907.02684.
    """

    def __init__(
        self,
        words: int,
        labels: int,
        types: int,
        width: int = 64,
        projected: int = 16,
        attention: str = "labels",
        longest: int = 32,
        seed: int | None = None,
        apart: bool = False,
        hidden: int = 64,
    ) -> None:
        super().__init__(words, labels, width, projected, attention, longest, False, seed, apart)
        self.dependence = HeadScores(labels * projected, hidden, types)

    def forward(self, words: Tensor) -> Any:
        heads = self.heads(words)
        return (self.read(heads), *self.dependence(self.fences(heads)))

    def loss(self, words: Tensor, labels: Tensor, heads: Tensor, types: Tensor) -> Tensor:
        """Cross-entropies of the labels of all spans, and half of those of heads ``(b, n)`` and of types ``(b, n)``."""
        spans, arcs, told = self(words)
        every = torch.ones(spans.shape[1:3], dtype=torch.bool, device=spans.device).triu(1)
        loss = F.cross_entropy(F.pad(spans[:, every], (1, 0)).flatten(0, 1), labels[:, every].flatten())
        loss = loss + 0.5 * F.cross_entropy(arcs[:, 1:].flatten(0, 1), heads.flatten())
        return loss + 0.5 * F.cross_entropy(told[:, 1:].flatten(0, 1), types.flatten())

    @torch.no_grad()
    def parse(self, words: Tensor, share: float = 0.5) -> list[tuple[Tree, Tensor]]:
        """The best tree of each sentence, and the types ``(n,)`` of its words."""
        spans, arcs, types = self(words)
        pairs = zip(spans, arcs, types.argmax(-1), strict=True)
        return [(best_tree(span, arc, share), kind[1:]) for span, arc, kind in pairs]

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": sentences, "output": [(8, 8, 5), (8, 8), (8, 3)]}
        made = {"labels": cls(13, 5, 3, 8, 4, "labels", 9, seed=0, hidden=6)}
        made["self, position apart"] = cls(13, 5, 3, 16, 4, "self", 9, seed=0, apart=True, hidden=6)
        return [Sample(label, network, given) for label, network in made.items()]


def best_tree(spans: Tensor, heads: Tensor, share: float = 0.5, phrases: bool = False) -> Tree:
    """The tree with the highest ``share`` · labels + (1 − share) · heads, in which both agree.

        one(l, r, h) = label(l, r) + max over splits of {part with h} + {other part, whose head depends on h}

    Every span has a head among its words, and is joined of one with the same head and one whose head depends on it; the
    latter has a label or is a word, the former need not. By dynamic programming in O(n⁵).

    Args:
        spans: ``(n + 1, n + 1, labels)``; no label scores zero. heads: ``(n + 1, n + 1)`` of word i's head being j, 0
            for the root. share: of labels. phrases: whether the first label is of phrases that are no constituents,
            and so neither a word nor the sentence.

    Raises:
        ValueError: other shapes, or no word.
    """
    fences = spans.shape[0]
    if fences < 2 or spans.shape[:2] != heads.shape or heads.shape[0] != heads.shape[1]:
        raise wrong("spans, heads", f"shapes {tuple(spans.shape)}, {tuple(heads.shape)}", "(n + 1, n + 1) each")
    heads = (1 - share) * heads.double()
    told, label = labelled(share * spans.double(), phrases)
    one = torch.full((fences,) * 3, -torch.inf, dtype=torch.float64)
    free, split, other = one.clone(), torch.zeros_like(one).long(), torch.zeros_like(one).long()
    for width in range(1, fences):
        for left in range(fences - width):
            right = left + width
            if width == 1:
                one[left, right, right], free[left, right, right] = told[left, right], told[left, right].clamp(min=0)
                continue
            for middle in range(left + 1, right):
                joined(one, free, split, other, heads, left, middle, right)
            free[left, right] = one[left, right] + told[left, right].clamp(min=0)
            one[left, right] += told[left, right]
    return traced(one, split, other, told, label, heads)


def labelled(spans: Tensor, phrases: bool) -> tuple[Tensor, Tensor]:
    """The best score and the best label, from 1, of each span."""
    (score, label), fences = spans.max(-1), spans.shape[0]
    if not phrases:
        return score, label + 1
    inner, which = spans[..., 1:].max(-1)
    width = torch.arange(fences) - torch.arange(fences)[:, None]
    narrow = (width == 1) | (width == fences - 1)
    return torch.where(narrow, inner, score), torch.where(narrow, which + 1, label) + 1


def joined(
    one: Tensor, free: Tensor, split: Tensor, other: Tensor, heads: Tensor, left: int, middle: int, right: int
) -> None:
    """Betters the ways to a span by those that split it in the middle."""
    a, b = slice(left + 1, middle + 1), slice(middle + 1, right + 1)
    for own, rest, kept, gone in (
        (b, a, free[middle, right], (free if middle - left == 1 else one)[left, middle]),
        (a, b, free[left, middle], (free if right - middle == 1 else one)[middle, right]),
    ):
        best, where = (gone[rest, None] + heads[rest, own]).max(0)
        found, now = kept[own] + best, one[left, right, own]
        better = found > now
        one[left, right, own] = torch.where(better, found, now)
        split[left, right, own] = torch.where(better, middle, split[left, right, own])
        other[left, right, own] = torch.where(better, where + rest.start, other[left, right, own])


def traced(one: Tensor, split: Tensor, other: Tensor, told: Tensor, label: Tensor, heads: Tensor) -> Tree:
    """The tree of the best head of the whole."""
    n = one.shape[0] - 1
    total, root = (one[0, n] + heads[:, 0])[1:].max(0)
    found, chart = torch.zeros(n, dtype=torch.int64), torch.zeros(n + 1, n + 1, dtype=torch.int64)
    waiting = [(0, n, int(root) + 1, True)]
    while waiting:
        left, right, head, must = waiting.pop()
        if (must and right - left > 1) or told[left, right] > 0:
            chart[left, right] = label[left, right]
        if right - left > 1:
            middle, rest = int(split[left, right, head]), int(other[left, right, head])
            found[rest - 1] = head
            first, second = (rest, head) if head > middle else (head, rest)
            waiting += [(left, middle, first, first == rest), (middle, right, second, second == rest)]
    return Tree(chart, found, float(total))
