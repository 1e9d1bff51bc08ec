"""Bottom-up and top-down attention: captions and answers from the regions that a detector gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from regard.networks.writer import Encoded, Remembered, Writer


@dataclass(frozen=True)
class TwoLayers(Remembered):
    """The state of both LSTMs, ``(b, width)`` each, and what the last step looked at, ``(b, m)``."""

    hidden: Tensor
    cell: Tensor
    language: Tensor
    language_cell: Tensor
    weights: Tensor


def real(regions: Tensor, lengths: Tensor | None, channels: int) -> Layout:
    """Which regions there are; raises an error that names what does not fit."""
    if regions.dim() != 3 or regions.shape[2] != channels:
        raise wrong("regions", f"shape {tuple(regions.shape)}", f"(b, m, {channels})")
    if lengths is None:
        return Layout()
    if lengths.shape != regions.shape[:1] or int(lengths.min()) < 1 or int(lengths.max()) > regions.shape[1]:
        raise wrong("lengths", str(lengths.tolist()), f"one for each image, from 1 to {regions.shape[1]}")
    return Layout(key_mask=torch.arange(regions.shape[1], device=regions.device) < lengths[:, None])


def mean_of(regions: Tensor, layout: Layout) -> Tensor:
    """The mean over real regions, ``(b, width)``."""
    if layout.key_mask is None:
        return regions.mean(1)
    there = layout.key_mask[..., None].to(regions.dtype)
    return (regions * there).sum(1) / there.sum(1)


@published(
    "bottom_up_top_down",
    family="structured",
    kind="network",
    row=233,
    title="Bottom-Up and Top-Down Attention for Image Captioning and Visual Question Answering",
    arxiv="1707.07998",
    year=2018,
    aliases=("butd", "up_down"),
    fidelity="hand values",
    claim=(
        Claim(
            "its captions of drawn scenes name more of the objects than those by a grid and by the mean of regions",
            cells="captions.beside_a_grid",
            holds="captions.names_more_objects",
        ),
        Claim(
            "at 70% of the words of an object it looks most at the object's region",
            cells="captions.regions",
            holds="captions.looks_at_the_region",
        ),
        Claim(
            "trained on by the score of whole captions it writes better ones than trained on by their words",
            cells="captions.rewarded",
            holds="captions.reward_pays",
        ),
    ),
)
class BottomUpTopDown(Writer):
    """Two LSTMs: one decides which regions v_i to look at, the other what to say.

        h¹_t = LSTM([h²_{t−1}; v̄; E y_{t−1}], h¹_{t−1}),   α_t = softmax_i w · tanh(W_v v_i + W_h h¹_t)
        h²_t = LSTM([Σ_i α_ti v_i; h¹_t], h²_{t−1}),   logits = W h²_t

    v̄ is the mean of the regions, which come from whatever finds them: a detector is none of the network. It is trained
    by the words of captions, then by `self_critical.self_critical`. `BottomUpAnswers` is the paper's other half,
    answers to questions.

    Shapes: ``regions (b, m, channels)``, ``target (b, n)`` ids, ``lengths (b,)``, how many regions are real -> logits
    ``(b, n, target)``.

    Args:
        target: vocabulary. channels: of what is known of a region. width: of all states. attends: False gives the mean
            of the regions to the second LSTM, the baseline. seed: of the initial weights; None takes PyTorch's.

    Raises:
        ValueError: a size below one.

    Paper: Anderson et al., arXiv 1707.07998.
    """

    def __init__(
        self, target: int, channels: int, width: int = 128, attends: bool = True, seed: int | None = None
    ) -> None:
        super().__init__()
        if min(target, channels, width) < 1:
            raise wrong("target, channels, width", f"{target}, {channels}, {width}", "at least 1 each")
        if seed is not None:
            torch.manual_seed(seed)
        self.target, self.channels, self.attends = target, channels, attends
        self.see = nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.embedding = nn.Embedding(target + 1, width)
        if attends:
            self.reader = build_text("composed(score=additive)", {"heads": 1, "head_dim": width})
            self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.cell, self.language = nn.LSTMCell(3 * width, width), nn.LSTMCell(2 * width, width)
        self.out = nn.Linear(width, target)

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> Encoded:
        layout = real(source, lengths, self.channels)
        keys = self.see(source)
        return Encoded(keys, mean_of(keys, layout), layout)

    def start(self, encoded: Encoded) -> TwoLayers:
        nothing = torch.zeros_like(encoded.end)
        return TwoLayers(nothing, nothing, nothing, nothing, torch.zeros_like(encoded.keys[..., 0]))

    def chances(self, hidden: Tensor, encoded: Encoded) -> Tensor:
        """α, ``(b, m)``."""
        if not self.attends:
            mask = encoded.layout.key_mask
            there = torch.ones_like(encoded.keys[..., 0]) if mask is None else mask.to(hidden.dtype)
            return there / there.sum(1, keepdim=True)
        q, k = self.query(hidden)[:, None, None], self.key(encoded.keys)[:, None]
        return self.reader.weights(q, k, encoded.layout)[:, 0, 0]

    def step(self, state: TwoLayers, previous: Tensor, encoded: Encoded) -> tuple[TwoLayers, Tensor]:
        x = torch.cat([state.language, encoded.end, self.embedding(previous)], -1)
        hidden, cell = self.cell(x, (state.hidden, state.cell))
        weights = self.chances(hidden, encoded)
        seen = (weights[..., None] * encoded.keys).sum(1)
        language, language_cell = self.language(torch.cat([seen, hidden], -1), (state.language, state.language_cell))
        return TwoLayers(hidden, cell, language, language_cell, weights), self.out(language)

    def intermediates(self, *inputs: Any, **named: Any) -> dict[str, Tensor]:
        """What each step looked at, ``(b, 1, n, m)``."""
        return self.looked(*inputs, **named)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": regions_and_words, "output": (5, 11)}
        return [
            Sample("regions", cls(11, 7, 8, seed=0), given),
            Sample("their mean", cls(11, 7, 8, attends=False, seed=0), given),
        ]


class GatedTanh(nn.Module):
    """``tanh(W x + b) ⊙ σ(W' x + b')``."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(into, out), nn.Linear(into, out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x))


class BottomUpAnswers(Network):
    """The answer to a question about regions: a GRU's question weighs them once.

        q = GRU(E words),   α = softmax_i w · f_a([v_i; q]),   logits = W f_o(f_q(q) ⊙ f_v(Σ_i α_i v_i))

    f are `GatedTanh`.

    Shapes: ``regions (b, m, channels)``, ``question (b, n)`` ids, ``lengths (b,)`` -> logits ``(b, answers)``.

    Args:
        words, answers: vocabularies. channels: of what is known of a region. width: of all states. seed: of the
            initial weights; None takes PyTorch's.

    Raises:
        ValueError: a size below one.

    Paper: Anderson et al., arXiv 1707.07998, section 3.3.
    """

    def __init__(self, words: int, answers: int, channels: int, width: int = 128, seed: int | None = None) -> None:
        super().__init__()
        if min(words, answers, channels, width) < 1:
            raise wrong("words, answers, channels, width", f"{words}, {answers}, {channels}, {width}", "at least 1")
        if seed is not None:
            torch.manual_seed(seed)
        self.channels, self.embedding = channels, nn.Embedding(words, width)
        self.question = nn.GRU(width, width, batch_first=True)
        self.match, self.score = GatedTanh(channels + width, width), nn.Linear(width, 1, bias=False)
        self.asked, self.seen = GatedTanh(width, width), GatedTanh(channels, width)
        self.joined = GatedTanh(width, width)
        self.out = nn.Linear(width, answers)

    def weigh(self, regions: Tensor, question: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """α ``(b, m)`` and q."""
        layout = real(regions, lengths, self.channels)
        q = self.question(self.embedding(question))[1][0]
        pairs = torch.cat([regions, q[:, None].expand(-1, regions.shape[1], -1)], -1)
        scores = self.score(self.match(pairs))[..., 0]
        return F.softmax(scores if layout.key_mask is None else scores.masked_fill(~layout.key_mask, -torch.inf), -1), q

    def forward(self, regions: Tensor, question: Tensor, lengths: Tensor | None = None) -> Tensor:
        weights, q = self.weigh(regions, question, lengths)
        seen = (weights[..., None] * regions).sum(1)
        return self.out(self.joined(self.asked(q) * self.seen(seen)))

    def intermediates(self, *inputs: Any, **named: Any) -> dict[str, Tensor]:
        """What the question looks at, ``(b, 1, 1, m)``."""
        with torch.no_grad():
            return {"reader": self.weigh(*inputs, **named)[0][:, None, None]}

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": regions_and_words, "output": (13,)}
        return [Sample("answers", cls(11, 13, 7, 8, seed=0), given)]


def regions_and_words(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Regions and words for examples."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 6, 7, generator=generator), torch.randint(11, (batch, 5), generator=generator)
