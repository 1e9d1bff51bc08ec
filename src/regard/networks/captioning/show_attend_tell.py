"""Show, attend and tell: a captioner that looks at a grid, softly or at one cell that it draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.build import build_text
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.networks.captioning.base import GIVEN, Asked, Captioner, Looked
from regard.networks.writer import Encoded

Attention = Literal["soft", "hard", "mean"]
SOFTLY, REWARD, ENTROPY, KEPT = 0.5, 0.1, 0.002, 0.9
"""Of the authors' code: the share of batches that look softly in training of hard attention, the weights of reward and
entropy, and how much of the moving baseline is kept."""


@published(
    "show_attend_tell",
    family="structured",
    kind="network",
    row=98,
    title="Show, Attend and Tell: Neural Image Caption Generation with Visual Attention",
    arxiv="1502.03044",
    year=2015,
    aliases=("hard_attention", "soft_attention_captioner"),
    fidelity="hand values",
    claim=(
        Claim(
            "it describes drawn scenes with a BLEU-4 of 0.8 at least, softly and by hard attention",
            cells="captions.looking",
            holds="captions.describes",
        ),
        Claim(
            "at the words of an object 60% of its attention are inside of the object's box",
            cells="captions.looking",
            holds="captions.looks_at_the_object",
        ),
        Claim(
            "both are better than the mean of all cells",
            cells="captions.looking",
            holds="captions.beats_the_mean",
        ),
    ),
)
class ShowAttendTell(Captioner):
    """An LSTM that looks at a grid of annotation vectors a_i before each word.

        α_t = softmax_i w · tanh(W_a a_i + W_h h_{t−1}),   β_t = σ(W_β h_{t−1})
        soft: z_t = β_t Σ_i α_ti a_i,   hard: z_t = β_t a_s, s drawn from α_t
        h_t = LSTM([E y_{t−1}; z_t], h_{t−1}),   logits = L_o tanh(E y_{t−1} + L_h h_t + L_z z_t)

    h_0 and its cell are `begin` of the mean of a, which is the output of any convolutional network: here `Grid`, which
    learns with the rest, where the paper's was trained on photographs before. When it is evaluated, hard attention
    takes the likeliest cell. With ``attention="mean"`` all α are equal, the baseline. `loss` is what it is trained by.

    Shapes: ``images (b, c, y, x)``, ``target (b, n)`` ids -> logits ``(b, n, target)``.

    Args:
        target, width, channels, wide, seed: as in `Captioner`. attention: "soft", "hard" or "mean".
        even: λ of ``λ Σ_i (1 − Σ_t α_ti)²``, beside a caption's whole cross-entropy; 1 in the paper, 0 in the authors'
            code.

    Raises:
        ValueError: another attention, or λ below zero.

    Paper: Xu et al., arXiv 1502.03044.
    """

    baseline: Tensor

    def __init__(
        self,
        target: int,
        width: int = 128,
        channels: int = 3,
        attention: Attention = "soft",
        even: float = 0.0,
        wide: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(target, width, channels, wide, seed)
        if attention not in get_args(Attention):
            raise wrong("attention", repr(attention), f"one of {', '.join(get_args(Attention))}")
        if even < 0:
            raise wrong("even", str(even), "zero or more")
        self.attention, self.even = attention, even
        if attention != "mean":
            self.reader = build_text("composed(score=additive)", {"heads": 1, "head_dim": width})
            self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.begin, self.gate = nn.Linear(width, 2 * width), nn.Linear(width, 1)
        self.cell = nn.LSTMCell(2 * width, width)
        self.say_hidden, self.say_seen = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, target)
        self.register_buffer("baseline", torch.zeros(()))

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> Encoded:
        """Annotation vectors, with W_a a where they are weighed."""
        found = super().encode(source, lengths)
        if self.attention == "mean":
            return found
        return Asked(found.keys, found.end, found.layout, self.key(found.keys))

    def start(self, encoded: Encoded) -> Looked:
        hidden, cell = torch.tanh(self.begin(encoded.end)).chunk(2, -1)
        return Looked(hidden, cell, torch.zeros_like(encoded.keys[..., 0]))

    def chances(self, hidden: Tensor, encoded: Encoded) -> Tensor:
        """α, ``(b, m)``."""
        if self.attention == "mean":
            return torch.full_like(encoded.keys[..., 0], 1 / encoded.keys.shape[1])
        q, k = self.query(hidden)[:, None, None], cast(Asked, encoded).projected[:, None]
        return self.reader.weights(q, k, encoded.layout)[:, 0, 0]

    def look(self, chances: Tensor) -> Tensor:
        """What is looked at: the chances themselves, or one cell."""
        if self.attention != "hard":
            return chances
        return F.one_hot(chances.argmax(-1), chances.shape[1]).to(chances.dtype)

    def step(self, state: Looked, previous: Tensor, encoded: Encoded) -> tuple[Looked, Tensor]:
        return self.told(state, previous, encoded, self.look(self.chances(state.hidden, encoded)))

    def told(self, state: Looked, previous: Tensor, encoded: Encoded, weights: Tensor) -> tuple[Looked, Tensor]:
        """The state and the logits after a step that looks there."""
        x, seen = self.embedding(previous), (weights[..., None] * encoded.keys).sum(1)
        seen = torch.sigmoid(self.gate(state.hidden)) * seen
        hidden, cell = self.cell(torch.cat([x, seen], -1), (state.hidden, state.cell))
        said = torch.tanh(x + self.say_hidden(hidden) + self.say_seen(seen))
        return Looked(hidden, cell, weights), self.out(said)

    def loss(self, images: Tensor, target: Tensor, real: Tensor, generator: Generator) -> Tensor:
        """Cross-entropy of captions, the penalty for cells that are looked at more or less than once, and of hard
        attention the score-function estimate of what its draws change.

            hard: − ((log p(y) − b) / 10) Σ_t log α_ts − 0.002 Σ_t H(α_t),   b ← 0.9 b + 0.1 log p(y)

        A batch of hard attention looks softly at all of its words, with a chance of one half, as in the authors' code,
        or draws for each of them.

        Args:
            real: ``(b, n)``, False = padding. generator: of draws.
        """
        encoded, steps, looks, drawn = self.encode(images), [], [], []
        sampled = self.attention == "hard" and float(torch.rand((), generator=generator)) >= SOFTLY
        state, before = self.start(encoded), torch.full_like(target[:, :1], self.target)
        for previous in torch.cat([before, target[:, :-1]], 1).unbind(1):
            chances = self.chances(state.hidden, encoded)
            weights, log = self.draw(chances, generator) if sampled else (chances, torch.zeros_like(chances[:, 0]))
            state, logits = self.told(state, previous, encoded, weights)
            steps.append(logits)
            looks.append(chances)
            drawn.append(log)
        shown, chosen = torch.stack(looks, 1), real.to(looks[0].dtype)
        logs = torch.stack(steps, 1).log_softmax(-1).gather(2, target[..., None])[..., 0] * chosen
        loss = -logs.sum(1).mean()
        loss = loss + self.even * (1 - (shown * chosen[..., None]).sum(1)).square().sum(1).mean()
        if self.attention != "hard":
            return loss
        sums, entropy = logs.detach().sum(1), -torch.special.xlogy(shown, shown).sum(-1) * chosen
        reward = REWARD * (sums - self.baseline) * (torch.stack(drawn, 1) * chosen).sum(1)
        if self.training:
            self.baseline.mul_(KEPT).add_((1 - KEPT) * sums.mean())
        return loss - (reward + ENTROPY * entropy.sum(1)).mean()

    def draw(self, chances: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Cells that are drawn, ``(b, m)`` with one 1 a row, and the logarithms of their chances, ``(b,)``."""
        cell = torch.multinomial(chances.detach().cpu(), 1, generator=generator).to(chances.device)
        weights = F.one_hot(cell[:, 0], chances.shape[1]).to(chances.dtype)
        return weights, chances.gather(1, cell)[:, 0].clamp(min=1e-12).log()

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        made: dict[str, Any] = {
            "soft": cls(11, 8, seed=0),
            "mean": cls(11, 8, attention="mean", seed=0),
        }
        return [Sample(label, network, GIVEN) for label, network in made.items()]
