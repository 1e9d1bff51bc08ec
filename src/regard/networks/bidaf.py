"""Reading a text with a question: attention both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.build import build_text
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.networks.base import Network

SPAN = 5
"""Letters under a convolution at once."""


@published(
    "bidaf",
    family="structured",
    kind="network",
    row=195,
    title="Bidirectional Attention Flow for Machine Comprehension",
    arxiv="1611.01603",
    year=2017,
    aliases=("attention_flow_layer", "bidirectional_attention_flow"),
    fidelity="hand values",
    claim=(
        Claim(
            "it finds more than 95% of the answers in paragraphs of keys and values",
            cells="reading.answered",
            holds="reading.finds_the_answers",
        ),
        Claim(
            "where words must find their own in the question, it finds 20 points less without attention to it",
            cells="reading.matched",
            holds="reading.needs_the_question",
        ),
    ),
)
class BiDAF(Network):
    """Attention from each word of a context to the question, and from the question to the context's words.

        x = highway([word; letters]),   h, u = BiLSTM(x) of the context and the question
        S_tj = w · [h_t; u_j; h_t ⊙ u_j],   ũ_t = Σ_j softmax_j(S_tj) u_j,   h̃ = Σ_t softmax_t(max_j S_tj) h_t
        G_t = [h_t; ũ_t; h_t ⊙ ũ_t; h_t ⊙ h̃],   M = BiLSTM(G),   M' = BiLSTM(M)
        p¹ = softmax_t(w₁ · [G_t; M_t]),   p² = softmax_t(w₂ · [G_t; M'_t])

    S is two biases and one product (`Trilinear`), never a tensor of pairs and channels.

    Shapes: ``context (b, m)``, ``question (b, n)`` ids, ``asked (b, n)`` bool of the question's real words, and with
    letters ``(b, m, c)`` and ``(b, n, c')``, ids of each word's, 0 behind its end -> logits of the answer's first and
    last word ``(b, 2, m)``.

    Args:
        vocabulary, width: of both texts and of all states, even. toward: False replaces ũ_t by the mean of u, which
            takes the attention from context to question away. letters: how many there are, 0 the padding; None reads
            whole words alone. highways: layers. layers: of the LSTM that makes M. dropout: before each LSTM and the
            ends; 0.2 in the paper. seed: of the initial weights.

    Raises:
        ValueError: an odd width, or a vocabulary below one; letters that are given or not.

    Paper: Seo et al., arXiv 1611.01603.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 64,
        toward: bool = True,
        letters: int | None = None,
        highways: int = 2,
        layers: int = 2,
        dropout: float = 0.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if vocabulary < 1 or width < 2 or width % 2 or min(highways, layers - 1) < 0:
            came = f"{vocabulary}, {width}, {highways}, {layers}"
            raise wrong("vocabulary, width, highways, layers", came, "at least 1, an even width, at least 0 and 1")
        if seed is not None:
            torch.manual_seed(seed)
        self.toward, self.embed, self.drop = toward, nn.Embedding(vocabulary, width), nn.Dropout(dropout)
        self.spelled = None if letters is None else Spelling(letters, width)
        wide, half = width if letters is None else 2 * width, width // 2
        self.highways = nn.Sequential(*(Highway(wide) for _ in range(highways)))
        self.encoder = nn.LSTM(wide, half, batch_first=True, bidirectional=True)
        self.flow: Any = build_text("composed(score=trilinear)", {"heads": 1, "head_dim": width})
        between = dropout if layers > 1 else 0.0
        self.model = nn.LSTM(4 * width, half, layers, batch_first=True, bidirectional=True, dropout=between)
        self.behind = nn.LSTM(width, half, batch_first=True, bidirectional=True)
        self.first, self.last = nn.Linear(5 * width, 1), nn.Linear(5 * width, 1)

    def read(self, words: Tensor, letters: Tensor | None) -> Tensor:
        """The states of a text, ``(b, n, width)``."""
        x = self.embed(words)
        if (letters is None) is not (self.spelled is None):
            came = "none" if letters is None else f"shape {tuple(letters.shape)}"
            raise wrong("letters", came, "none" if self.spelled is None else f"({', '.join(map(str, words.shape))}, c)")
        if self.spelled is not None and letters is not None:
            x = torch.cat([x, self.spelled(letters)], -1)
        return self.encoder(self.drop(self.highways(x)))[0]

    def forward(
        self,
        context: Tensor,
        question: Tensor,
        asked: Tensor | None = None,
        context_letters: Tensor | None = None,
        question_letters: Tensor | None = None,
    ) -> Tensor:
        h, u = self.read(context, context_letters), self.read(question, question_letters)
        layout, whole = Layout(key_mask=asked), slice(0, context.shape[1])
        if self.toward:
            read = self.flow(h[:, None], u[:, None], u[:, None], layout)[:, 0]
        else:
            real = torch.ones_like(u[..., :1]) if asked is None else asked[..., None].to(u.dtype)
            read = ((u * real).sum(1) / real.sum(1))[:, None].expand_as(h)
        scores = self.flow.scores(h[:, None], u[:, None], layout, whole)[:, 0]
        scores = scores if asked is None else scores.masked_fill(~asked[:, None], -torch.inf)
        back = (scores.amax(-1).softmax(-1)[..., None] * h).sum(1, keepdim=True)
        g = torch.cat([h, read, h * read, h * back], -1)
        m = self.model(self.drop(g))[0]
        behind = self.behind(self.drop(m))[0]
        ends = zip((self.first, self.last), (m, behind), strict=True)
        return torch.cat([end(self.drop(torch.cat([g, seen], -1))) for end, seen in ends], -1).mT

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        spelled = {"inputs": random_spelled, "output": (2, 11)}
        return [
            Sample("words", cls(13, 8, seed=0), {"inputs": random_texts, "output": (2, 11)}),
            Sample("letters", cls(13, 8, letters=7, highways=1, layers=1, seed=0), spelled),
        ]


class Highway(nn.Module):
    """``y = t ⊙ relu(W x) + (1 − t) ⊙ x`` with the gate ``t = σ(W' x)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map, self.gate = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * F.relu(self.map(x)) + (1 - gate) * x


class Spelling(nn.Module):
    """Words from their letters: a convolution over five letters, and the largest of each channel over the word.

    Shapes: ``letters (b, n, c)`` ids, 0 behind a word's end -> ``(b, n, width)``. Windows that begin behind the end do
    not count, so that padding changes nothing; a word of no letters has that of padding alone.

    Args:
        letters: how many there are. width: channels. size: of a letter.
    """

    def __init__(self, letters: int, width: int, size: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters, size, padding_idx=0)
        self.convolve = nn.Conv1d(size, width, SPAN)

    def forward(self, letters: Tensor) -> Tensor:
        x = F.pad(self.embed(letters.flatten(0, 1)).mT, (0, SPAN - 1))
        begins = (letters > 0).flatten(0, 1)
        begins[:, 0] = True
        found = F.relu(self.convolve(x)).masked_fill(~begins[:, None], 0)
        return found.amax(-1).unflatten(0, letters.shape[:2])


def random_texts(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """A context and a question for examples."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(13, (batch, 11), generator=generator), torch.randint(13, (batch, 3), generator=generator)


def random_spelled(batch: int, seed: int) -> tuple[Tensor, ...]:
    """A context and a question whose last word is padding, with the letters of their words, for examples."""
    generator = torch.Generator().manual_seed(seed)
    context, question = random_texts(batch, seed)
    letters = [torch.randint(7, (*text.shape, 6), generator=generator).sort(-1, descending=True).values
               for text in (context, question)]  # fmt: skip
    asked = torch.ones(question.shape, dtype=torch.bool)
    asked[:, -1] = False
    return context, question, asked, *letters
