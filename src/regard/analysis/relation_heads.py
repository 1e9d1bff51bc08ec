"""Heads as parsers: which heads find a word's syntactic head, from maps between words, and a probe of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Analysis, Head, Result
from regard.analysis.head_divergence import every_map
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample

OFFSETS = tuple(n for n in range(-3, 4) if n)
"""Of the words that are always guessed, as a baseline."""
WAYS = ("dependent to head", "head to dependent")


@dataclass(frozen=True)
class Sentence:
    """A sentence with its tree.

    Args:
        ids: ``(n,)`` tokens, those around it included. words: slots of each word's pieces. heads: index of each word's
            head, -1 for none. relations: of each word to its head; those of no interest are "". speakers: whose guess
            counts for each word: its own if not given. As in the authors' code that of a possessor, relation ``poss``,
            is the one of the ``'s`` behind it.
    """

    ids: Tensor
    words: tuple[tuple[int, ...], ...]
    heads: tuple[int, ...]
    relations: tuple[str, ...]
    speakers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.speakers and (len(self.speakers) != len(self.words) or max(self.speakers) >= len(self.words)):
            raise wrong("speakers", f"{self.speakers}", f"one of the {len(self.words)} words for each, or none")
        if not len(self.words) == len(self.heads) == len(self.relations):
            sizes = f"{len(self.words)} words, {len(self.heads)} heads, {len(self.relations)} relations"
            raise wrong("sentence", sizes, "a head and a relation for each word")


def word_map(maps: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """``(…, words, words)`` of ``maps (…, n, n)``: weights to a word's pieces summed, those from them averaged.

    Tokens of no word are left out, so that rows sum to one only where there are none.
    """
    to = torch.zeros(maps.shape[-1], len(words), dtype=maps.dtype, device=maps.device)
    for word, slots in enumerate(words):
        to[list(slots), word] = 1
    return (to / to.sum(0)).mT @ maps @ to


@dataclass(frozen=True)
class RelationScores(Result):
    """How often each head finds the head of a word.

    Args:
        relations: their names. hits: by way and layer ``(ways, layers)`` of ``(heads, relations)``, counts as
            ``(ways, layers, heads, relations)``. guesses: ``(offsets, relations)``, what always guessing the word at an
            offset finds. totals: ``(relations,)``.
    """

    relations: tuple[str, ...]
    hits: Tensor
    guesses: Tensor
    totals: Tensor
    name = "relation_heads"

    def merge(self, other: RelationScores) -> RelationScores:
        """The words of both.

        Raises:
            ValueError: other relations, or other heads.
        """
        if (self.relations, self.hits.shape) != (other.relations, other.hits.shape):
            raise wrong("other", f"{other.relations}", f"the same heads for {self.relations}")
        pairs = [(getattr(self, of), getattr(other, of)) for of in ("hits", "guesses", "totals")]
        return RelationScores(self.relations, *(one + more for one, more in pairs))

    def accuracy(self, relation: str, way: int, head: Head) -> float:
        """Of one head for one relation."""
        at = self.relations.index(relation)
        return float(self.hits[way, head[0], head[1], at] / self.totals[at])

    def best(self, relation: str) -> tuple[int, Head, float]:
        """The way and the head that find a relation most often, and how often."""
        at = self.relations.index(relation)
        shares = self.hits[..., at] / self.totals[at]
        way, layer, head = (int(i) for i in torch.unravel_index(shares.argmax(), shares.shape))
        return way, (layer, head), float(shares[way, layer, head])

    def offset(self, relation: str) -> tuple[int, float]:
        """The offset that guesses a relation best, and how often."""
        at = self.relations.index(relation)
        shares = self.guesses[:, at] / self.totals[at]
        return OFFSETS[int(shares.argmax())], float(shares.max())

    def table(self) -> list[dict[str, Any]]:
        rows = []
        for relation, total in zip(self.relations, self.totals.tolist(), strict=True):
            (way, (layer, head), share), (offset, guessed) = self.best(relation), self.offset(relation)
            about = {"relation": relation, "words": int(total), "layer": layer, "head": head, "way": WAYS[way]}
            rows.append(about | {"accuracy": share, "offset": offset, "guessed": guessed})
        return rows


@published(
    "relation_heads",
    family="observe",
    kind="analysis",
    row=310,
    title="What Does BERT Look At? An Analysis of BERT's Attention",
    arxiv="1906.04341",
    year=2019,
    aliases=("bert_attention_analysis",),
    fidelity="authors' code",
    claim=(
        Claim(
            "for three relations or more one head finds the syntactic head better than any fixed offset, by ten points",
            cells="parsers.of_minilm",
            holds="parsers.heads_beat_offsets",
        ),
        Claim(
            "all heads together find more syntactic heads than the best single one",
            cells="parsers.of_minilm",
            holds="parsers.together_they_find_more",
        ),
        Claim(
            "more are found by a probe that also reads the words",
            cells="parsers.with_words",
            holds="parsers.words_help",
        ),
        Claim(
            "one head finds what a pronoun stands for better than the nearest candidate, by ten points",
            cells="parsers.antecedents",
            holds="parsers.a_head_refers",
        ),
        Claim(
            "heads are like others of their layer",
            cells="parsers.layers_of_minilm",
            holds="parsers.layers_are_alike",
        ),
    ),
)
class RelationHeads(Analysis[Sentence, RelationScores]):
    """Accuracy of each head as a parser: the other word that it gives a word most weight, taken as that word's head.

        from dependent to head: argmax_{j≠i} A_ij,   from head to dependent: argmax_{j≠i} A_ji

    A is between words (`word_map`); what stands for no word is not among them. Heads are measured against always
    guessing the word at an offset from −3 to 3. `attention_probe` reads all heads at once, `word_probe` the words, too;
    `word_probe.AntecedentHeads` has what words stand for, `head_divergence` divergences, clusters, and gradients.

    Paper: Clark et al., arXiv 1906.04341. Its treebank may not be passed on; any other goes in as `Sentence`, and the
    claims' sentences are drawn with their trees.

    Args:
        relations: which are measured.

    Raises:
        ValueError: no relations; in a run no sentences, or none with these relations.
    """

    name = "relation_heads"

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("by hand", cls(("x",)), {"known": by_hand})]

    def __init__(self, relations: Sequence[str]) -> None:
        if not relations:
            raise wrong("relations", "none", "at least one")
        self.relations = tuple(relations)

    def run(self, subject: Any, data: Iterable[Sentence]) -> RelationScores:
        found: RelationScores | None = None
        for sentence in data:
            maps = torch.stack([word_map(of, sentence.words) for of in every_map(subject, sentence.ids)])
            one = self.scored(maps, sentence)
            found = one if found is None else found.merge(one)
        if found is None or not bool(found.totals.all()):
            what = "no sentences" if found is None else f"none with {self.missing(found.totals)}"
            raise wrong("data", what, "sentences with each of the relations")
        return found

    def missing(self, totals: Tensor) -> str:
        """The relations that did not occur."""
        return ", ".join(name for name, count in zip(self.relations, totals.tolist(), strict=True) if not count)

    def scored(self, maps: Tensor, sentence: Sentence) -> RelationScores:
        """Counts over one sentence's ``maps (layers, heads, words, words)``."""
        n = maps.shape[-1]
        others = maps.masked_fill(torch.eye(n, dtype=torch.bool), -1)
        guess = torch.stack([others.argmax(-1), others.mT.argmax(-1)])
        gold = torch.tensor(sentence.heads)
        kinds = torch.tensor([[name == of for of in self.relations] for name in sentence.relations]).double()
        kinds = kinds * (gold >= 0)[:, None]
        places = torch.stack([(torch.arange(n) + offset).clamp(0, n - 1) for offset in OFFSETS])
        spoken = list(sentence.speakers or range(n))
        hits, guesses = ((guess[..., spoken] == gold).double() @ kinds, (places[:, spoken] == gold).double() @ kinds)
        return RelationScores(self.relations, hits, guesses, kinds.sum(0))


@dataclass(frozen=True)
class AttentionProbe:
    """A linear probe of all heads: softmax over j ≠ i of Σ_k (w_k A^k_ij + u_k A^k_ji).

    Args:
        w, u: ``(heads,)``, of the heads of all layers in their order.
    """

    w: Tensor
    u: Tensor

    def scores(self, maps: Tensor) -> Tensor:
        """``(words, words)``, −∞ on the diagonal; maps ``(heads, words, words)``."""
        maps = maps.to(self.w.dtype)
        mixed = torch.einsum("h,hij->ij", self.w, maps) + torch.einsum("h,hji->ij", self.u, maps)
        return mixed.masked_fill(torch.eye(len(mixed), dtype=torch.bool), -torch.inf)

    def right(self, maps: Sequence[Tensor], heads: Sequence[Sequence[int]]) -> float:
        """The share of words with a head for which it is found."""
        found = [self.scores(of).argmax(1) == torch.tensor(gold) for of, gold in zip(maps, heads, strict=True)]
        known = [torch.tensor(gold) >= 0 for gold in heads]
        return float(torch.cat(found)[torch.cat(known)].double().mean())


def attention_probe(maps: Sequence[Tensor], heads: Sequence[Sequence[int]], steps: int = 60) -> AttentionProbe:
    """The probe that makes the heads of words likeliest, found by L-BFGS: the loss is convex.

    Args:
        maps: of each sentence, ``(heads, words, words)``. heads: index of each word's head, -1 for none.

    Raises:
        ValueError: no sentences, or not as many trees.
    """
    if not maps or len(maps) != len(heads):
        raise wrong("heads", f"{len(heads)} for {len(maps)} sentences", "one tree for each of at least one")
    weights = torch.zeros(2, len(maps[0]), dtype=torch.float64, requires_grad=True)
    gold = [torch.tensor(tree) for tree in heads]
    optimiser = torch.optim.LBFGS([weights], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        probe = AttentionProbe(weights[0], weights[1])
        parts = [
            probe.scores(of).log_softmax(1)[torch.arange(len(tree)), tree.clamp(min=0)][tree >= 0]
            for of, tree in zip(maps, gold, strict=True)
        ]
        value = -torch.cat(parts).mean() + 1e-4 * weights.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    return AttentionProbe(*weights.detach().unbind())


def by_hand() -> tuple[Tensor, Tensor]:
    """Three words of which the first and the last have word 1 as their head.

    From dependents the first head finds both, the second none; from heads each finds one; so do offsets 1 and −1.
    """
    maps = torch.tensor(
        [
            [[0.1, 0.55, 0.35], [0.3, 0.4, 0.3], [0.2, 0.5, 0.3]],
            [[0.9, 0.02, 0.08], [0.8, 0.1, 0.1], [0.85, 0.1, 0.05]],
        ]
    )
    sentence = Sentence(torch.arange(3), ((0,), (1,), (2,)), (1, -1, 1), ("x", "", "x"))
    found = RelationHeads(("x",)).scored(maps[None], sentence)
    want = torch.tensor([2, 0, 1, 1, 0, 0, 1, 1, 0, 0], dtype=torch.float64)
    return torch.cat([found.hits.flatten(), found.guesses.flatten()]), want
