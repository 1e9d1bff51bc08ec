"""Five captioners, from one vector to attention at every word: what a better image encoder gives to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.build import build_text
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.networks.captioning.base import GIVEN, Asked, Captioner
from regard.networks.writer import Encoded, Remembered

Reads = Literal["start", "every", "merged", "once", "always"]
WEAK, STRONG = 0.5, 2.0


@dataclass(frozen=True)
class Reading(Remembered):
    """An LSTM's state ``(b, width)``, what the last step looked at ``(b, m)``, and whether there was one ``(b,)``."""

    hidden: Tensor
    cell: Tensor
    weights: Tensor
    begun: Tensor


@published(
    "captioning_bottleneck",
    family="structured",
    kind="study",
    row=266,
    title=(
        "When Better Eyes Lead to Blindness: A Diagnostic Study of the Information Bottleneck in CNN-LSTM Image "
        "Captioning Models"
    ),
    arxiv="2507.18788",
    year=2025,
    aliases=("genesis_to_nexus",),
    fidelity="abstract only",
    claim=Claim(
        "a stronger image encoder gives nothing to a captioner of one vector, and more to one that attends",
        cells="captions.bottleneck",
        holds="captions.only_attention_gains",
    ),
)
class Bottleneck(Captioner):
    """An LSTM captioner that reads its image in one of five ways.

    ``start``: the mean of the grid is the LSTM's first state. ``every``: it comes with every word. ``merged``: it meets
    the LSTM's state before the words are told. ``once``: additive attention, asked at the first word and kept.
    ``always``: asked at every word. Which five the paper has is not in its abstract; these are named here.

    Shapes: ``images (b, c, y, x)``, ``target (b, n)`` ids -> logits ``(b, n, target)``.

    Args:
        target, width, channels, seed: as in `Captioner`. reads: the way. strong: four times the channels in the image
            encoder, which `Seeing` trains before.

    Raises:
        ValueError: another way.

    Paper: Gupta, arXiv 2507.18788, of which only the abstract is followed.
    """

    def __init__(
        self,
        target: int,
        width: int = 96,
        reads: Reads = "always",
        strong: bool = False,
        channels: int = 3,
        seed: int | None = None,
    ) -> None:
        super().__init__(target, width, channels, STRONG if strong else WEAK, seed)
        if reads not in get_args(Reads):
            raise wrong("reads", repr(reads), f"one of {', '.join(get_args(Reads))}")
        self.reads = reads
        if self.attends:
            self.reader = build_text("composed(score=additive)", {"heads": 1, "head_dim": width})
            self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.begin = nn.Linear(width, 2 * width) if reads == "start" else None
        self.cell = nn.LSTMCell(width if reads in ("start", "merged") else 2 * width, width)
        self.out = nn.Linear(2 * width if reads == "merged" else width, target)

    @property
    def attends(self) -> bool:
        """Whether cells of the image are weighed."""
        return self.reads in ("once", "always")

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> Encoded:
        found = super().encode(source, lengths)
        return Asked(found.keys, found.end, found.layout, self.key(found.keys)) if self.attends else found

    def start(self, encoded: Encoded) -> Reading:
        nothing, cells = torch.zeros_like(encoded.end), encoded.keys[..., 0]
        hidden, cell = (nothing, nothing) if self.begin is None else torch.tanh(self.begin(encoded.end)).chunk(2, -1)
        even = torch.full_like(cells, 1 / cells.shape[1])
        return Reading(hidden, cell, even, torch.zeros_like(cells[:, 0]))

    def weights(self, state: Reading, encoded: Encoded) -> Tensor:
        """What is looked at, ``(b, m)``."""
        if not self.attends:
            return state.weights
        q, k = self.query(state.hidden)[:, None, None], cast(Asked, encoded).projected[:, None]
        asked = self.reader.weights(q, k, encoded.layout)[:, 0, 0]
        return asked if self.reads == "always" else torch.where(state.begun[:, None] > 0, state.weights, asked)

    def step(self, state: Reading, previous: Tensor, encoded: Encoded) -> tuple[Reading, Tensor]:
        x, weights = self.embedding(previous), self.weights(state, encoded)
        seen = (weights[..., None] * encoded.keys).sum(1)
        given = x if self.reads in ("start", "merged") else torch.cat([x, seen], -1)
        hidden, cell = self.cell(given, (state.hidden, state.cell))
        said = torch.cat([hidden, F.relu(seen)], -1) if self.reads == "merged" else hidden
        return Reading(hidden, cell, weights, torch.ones_like(state.begun)), self.out(said)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        made: dict[str, Any] = {reads: cls(11, 8, reads, seed=0) for reads in get_args(Reads)}
        return [Sample(label, network, GIVEN) for label, network in made.items()]


class Seeing(nn.Module):
    """What a stronger image encoder has learned before it is captioned with: how often each kind of object is there.

    Shapes: ``images (b, c, y, x)`` -> ``(b, kinds)``, a logarithm of how many.

    Args:
        grid: the image encoder. width: of its vectors. kinds: of objects.
    """

    def __init__(self, grid: nn.Module, width: int, kinds: int) -> None:
        super().__init__()
        self.grid, self.name = grid, nn.Linear(width, kinds)

    def forward(self, images: Tensor) -> Tensor:
        return self.name(self.grid(images)).logsumexp(1)

    def loss(self, images: Tensor, counts: Tensor) -> Tensor:
        """Poisson's, of ``counts (b, kinds)``."""
        return F.poisson_nll_loss(self(images), counts)
