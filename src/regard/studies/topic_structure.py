"""Where topics are learned: in embeddings while attention is uniform, in attention while embeddings are frozen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from regard.core.atlas import Claim, published


@published(
    "topic_structure",
    family="theory",
    kind="study",
    row=311,
    title="How Do Transformers Learn Topic Structure: Towards a Mechanistic Understanding",
    arxiv="2303.04245",
    year=2023,
    aliases=("lda_topics",),
    fidelity="hand values",
    claim=(
        Claim(
            "trained embeddings of words of one topic have larger products than those of different topics",
            cells="topics.embedded",
            holds="topics.are_near",
        ),
        Claim(
            "with frozen one-hot embeddings a word attends to words of its topic at least twice as much as to others",
            cells="topics.attended",
            holds="topics.attend_to_their_own",
        ),
    ),
)
@dataclass(frozen=True)
class Topics:
    """Texts of a few topics of disjoint words, and one layer that fills in words that are hidden.

        logits of a place that shows the word t = W u_t,   u_t = Σ_w a_tw e_w,   a_t ∝ exp(B_t·) over the words there

    No residual, no norm, no feed-forward part, no decoder: words are one-hot, W is the value's map, B the product of
    queries' and keys'. Stage one trains W, or embeddings E with W = E Eᵀ, under uniform attention (B = 0); stage two
    trains B. Of the places that are asked 80% show a mask, 10% their own word and 10% another.

    Args:
        topics, words: how many, and how many words each. length: of a text. mixed: topics of a text. hidden: the share
            of places that are asked. blurred: every text is of all topics, which tells nothing.

    Paper: Li, Li and Risteski, arXiv 2303.04245. Its theorems and this are about one stage after the other, on texts of
    known topics; it also trains all at once, and on an encyclopedia.
    """

    topics: int = 10
    words: int = 10
    length: int = 48
    mixed: int = 2
    hidden: float = 0.15
    blurred: bool = False

    @property
    def vocabulary(self) -> int:
        """All words, and the mask."""
        return self.topics * self.words + 1

    def texts(self, count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """What is shown and what is there, ``(b, length)`` ids, and where it is asked."""
        mixed = self.topics if self.blurred else self.mixed
        own = torch.rand(count, self.topics, generator=generator).argsort(1)[:, :mixed]
        topic = own.gather(1, torch.randint(mixed, (count, self.length), generator=generator))
        there = topic * self.words + torch.randint(self.words, topic.shape, generator=generator)
        asked = torch.rand(topic.shape, generator=generator) < self.hidden
        way = torch.rand(topic.shape, generator=generator)
        other = torch.randint(self.vocabulary - 1, topic.shape, generator=generator)
        masked = torch.where(way < 0.8, self.vocabulary - 1, torch.where(way < 0.9, there, other))
        return torch.where(asked, masked, there), there, asked

    def loss(self, values: Tensor, product: Tensor | None, texts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The cross-entropy of the words that are asked; ``product`` None for uniform attention."""
        shown, there, asked = texts
        row, place = asked.nonzero(as_tuple=True)
        around = values[shown[row]]
        if product is None:
            return F.cross_entropy(around.mean(1), there[row, place])
        weights = product[shown[row, place]].gather(1, shown[row]).softmax(-1)
        return F.cross_entropy((weights[..., None] * around).sum(1), there[row, place])

    def same(self) -> Tensor:
        """``(words, words)`` bool: different words of one topic."""
        topic = torch.arange(self.vocabulary - 1) // self.words
        return (topic[:, None] == topic) & ~torch.eye(self.vocabulary - 1, dtype=torch.bool)
