"""Small classifiers that learn to hide the word that decides: its attention, and what is left without it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.analysis.deceptive_attention import mass_by_layer, penalty
from regard.blocks.attention import Attention
from regard.blocks.block import Block
from regard.claims.cells import Cells, measured, quick
from regard.claims.figures import Figures, Finding, listed
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.mechanisms.scored.softmax import Softmax
from regard.projections.base import Grouped
from regard.train.fit import Recipe, fit

WORDS, LENGTH, CUES, WIDTH = 60, 11, 6, 64
"""Words, of a sentence so many; the first of the vocabulary decide, half of them for either class."""
RATE = 1e-3
"""Of learning, as in the authors' code."""


def sentences(count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """``(words (count, LENGTH), which of them decides, labels (count,))``: one cue in each, the others say nothing."""
    words = torch.randint(CUES, WORDS, (count, LENGTH), generator=generator)
    cues = torch.randint(CUES, (count,), generator=generator)
    at = torch.randint(LENGTH, (count,), generator=generator)
    words[torch.arange(count), at] = cues
    return words, torch.arange(LENGTH) == at[:, None], cues * 2 // CUES


class Encoder(nn.Module):
    """Two layers of a transformer behind a token of their own, whose state in the end is classified, as BERT's.

    As in the paper only that token sees both the words that decide and the others, which do not see each other.
    """

    def __init__(self, seed: int, heads: int = 2) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.words, self.places = nn.Embedding(WORDS + 1, WIDTH), nn.Parameter(0.1 * torch.randn(LENGTH + 1, WIDTH))
            size = WIDTH // heads
            attentions = [Attention(Softmax(), Grouped(Sizes(WIDTH, heads, heads, size, size))) for _ in range(2)]
            self.blocks = nn.ModuleList(Block(attention, WIDTH, 2 * WIDTH) for attention in attentions)
            self.norm, self.classes = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, words: Tensor, decides: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(scores (b, 2), of each layer A (b, heads, 1, LENGTH) of the first token to the words)``."""
        x, found = self.words(F.pad(words, (1, 0), value=WORDS)) + self.places, []
        alike = F.pad(decides[:, None] == decides[:, :, None], (1, 0, 1, 0), value=True)
        layout = Layout(mask=alike[:, None])
        for block in self.blocks:
            q, k, _, _ = block.attention.inputs(block.norms[0](x), layout)  # pyright: ignore
            found.append(block.attention.mechanism.weights(q, k, layout)[:, :, :1, 1:])  # pyright: ignore
            x = block(x, layout)
        return self.classes(self.norm(x[:, 0])), found


class Classifier(nn.Module):
    """Words, their states by a bidirectional LSTM or as they are, weighed by a linear score, as in the authors'."""

    def __init__(self, states: str, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.words = nn.Embedding(WORDS, WIDTH)
            self.lstm = nn.LSTM(WIDTH, WIDTH // 2, bidirectional=True, batch_first=True) if states == "lstm" else None
            self.score, self.classes = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 2)

    def forward(self, words: Tensor, decides: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(scores (b, 2), [A (b, 1, 1, LENGTH)])``, whichever words decide."""
        x = self.words(words)
        x = x if self.lstm is None else self.lstm(x)[0]
        weights = self.score(x)[..., 0].softmax(1)
        return self.classes(torch.einsum("bn,bnc->bc", weights, x)), [weights[:, None, None]]


@quick(seed=[0], steps=[50])
@measured(states=("embedding", "lstm", "encoder"), strength=(0.0, 1.0), seed=range(3), steps=[1000])
def cues(states: str, strength: float, seed: int, steps: int) -> dict[str, float]:
    """Accuracy on unseen sentences, with and without the cue, and the attention that it receives in the last layer,
    which is penalised, and at most in one before."""
    model = Encoder(seed) if states == "encoder" else Classifier(states, seed)

    def loss(ready: Any, generator: Generator) -> Tensor:
        words, decides, labels = sentences(64, generator)
        scores, weights = ready(words, decides)
        return F.cross_entropy(scores, labels) + penalty(weights, decides, strength)

    fit(model, loss, Recipe(steps, RATE, decay=0, seed=seed))
    words, decides, labels = sentences(2000, Generator().manual_seed(99))
    other = torch.randint(CUES, WORDS, words.shape, generator=Generator().manual_seed(98))
    with torch.no_grad():
        scores, weights = model(words, decides)
        erased, _ = model(torch.where(decides, other, words), decides)
    right, blind = ((told.argmax(1) == labels).double().mean().item() for told in (scores, erased))
    masses = [mean for mean, _ in mass_by_layer(weights, decides)]
    return {"right": right, "erased": blind, "mass": masses[-1], "before": max(masses[:-1], default=0.0)}


def of(states: str, steps: int = 1000) -> Cells:
    """Those of one network."""
    return cues.where(states=[states], steps=[steps])


def is_hidden(found: Figures) -> Finding:
    """In every seed, accuracy by three points at most."""
    told, conditions = [], list[bool]()
    for states in dict.fromkeys(found("states")):
        before, after = (found("mass", states=states, strength=x) for x in (0.0, 1.0))
        right, still = (found("right", states=states, strength=x) for x in (0.0, 1.0))
        told.append(
            f"{states}: attention on the cue {listed(before, '.0%')}, penalised {listed(after, '.2%')}, accuracy "
            f"{listed(right, '.1%')} and {listed(still, '.1%')}"
        )
        earlier = found("before", states=states, strength=1.0)
        told[-1] += f", in the layer before {listed(earlier, '.0%')}" if max(earlier) > 0 else ""
        drops = [one - other for one, other in zip(right, still, strict=True)]
        conditions += [min(before) >= 0.3, max(after) < 0.01, max(drops) <= 0.03]
    return Finding.of("; ".join(told), *conditions)


def is_used(found: Figures) -> Finding:
    """Within five points of one half."""
    erased = found("erased", strength=1.0)
    far = max(abs(x - 0.5) for x in erased)
    return Finding.of(f"accuracy of the penalised networks without the cue {listed(erased, '.1%')}", far <= 0.05)
