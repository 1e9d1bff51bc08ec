"""Reading a text with a question: attention both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.build import build_text
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.networks.base import Network


@published(
    "bidaf",
    family="structured",
    kind="network",
    row=195,
    title="Bidirectional Attention Flow for Machine Comprehension",
    arxiv="1611.01603",
    year=2017,
    aliases=("attention_flow_layer", "bidirectional_attention_flow"),
    missing="characters, highway layers, and the second LSTM of the model's end pointer",
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

        S_tj = w · [h_t; u_j; h_t ⊙ u_j],   ũ_t = Σ_j softmax_j(S_tj) u_j,   h̃ = Σ_t softmax_t(max_j S_tj) h_t
        G_t = [h_t; ũ_t; h_t ⊙ ũ_t; h_t ⊙ h̃],   M = BiLSTM(G),   p¹, p² = softmax_t(w₁,₂ · [G_t; M_t])

    S is two biases and one product (`Trilinear`), never a tensor of pairs and channels.

    Shapes: ``context (b, m)``, ``question (b, n)`` ids, ``asked (b, n)`` bool of the question's real words -> logits of
    the answer's first and last word ``(b, 2, m)``.

    Args:
        vocabulary, width: of both texts and of all states, even. toward: False replaces ũ_t by the mean of u, which
            takes the attention from context to question away. seed: of the initial weights.

    Raises:
        ValueError: an odd width, or a vocabulary below one.

    Paper: Seo et al., arXiv 1611.01603.
    """

    def __init__(self, vocabulary: int, width: int = 64, toward: bool = True, seed: int | None = None) -> None:
        super().__init__()
        if vocabulary < 1 or width < 2 or width % 2:
            raise wrong("vocabulary, width", f"{vocabulary}, {width}", "at least 1, and an even width")
        if seed is not None:
            torch.manual_seed(seed)
        self.toward, self.embed = toward, nn.Embedding(vocabulary, width)
        self.encoder = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
        self.flow: Any = build_text("composed(score=trilinear)", {"heads": 1, "head_dim": width})
        self.model = nn.LSTM(4 * width, width // 2, batch_first=True, bidirectional=True)
        self.ends = nn.Linear(5 * width, 2)

    def forward(self, context: Tensor, question: Tensor, asked: Tensor | None = None) -> Tensor:
        h, u = (self.encoder(self.embed(ids))[0] for ids in (context, question))
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
        return self.ends(torch.cat([g, self.model(g)[0]], -1)).mT

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": random_texts, "output": (2, 11)}
        return [Sample("both ways", cls(13, 8, seed=0), given)]


def random_texts(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """A context and a question for examples."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(13, (batch, 11), generator=generator), torch.randint(13, (batch, 3), generator=generator)
