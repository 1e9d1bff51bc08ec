"""Small classifiers that learn to hide the word that decides: its attention, and what is left without it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.analysis.deceptive_attention import on, penalty
from regard.claims.cells import Cells, measured
from regard.claims.figures import Figures, Finding, listed
from regard.train.fit import Recipe, fit

WORDS, LENGTH, CUES, WIDTH = 60, 11, 6, 24
"""Words, of a sentence so many; the first of the vocabulary decide, half of them for either class."""


def sentences(count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """``(words (count, LENGTH), which of them decides, labels (count,))``: one cue in each, the others say nothing."""
    words = torch.randint(CUES, WORDS, (count, LENGTH), generator=generator)
    cues = torch.randint(CUES, (count,), generator=generator)
    at = torch.randint(LENGTH, (count,), generator=generator)
    words[torch.arange(count), at] = cues
    return words, torch.arange(LENGTH) == at[:, None], cues * 2 // CUES


class Classifier(nn.Module):
    """Words, their states by a bidirectional LSTM or as they are, and one learned query that weighs them."""

    def __init__(self, states: str, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.words = nn.Embedding(WORDS, WIDTH)
            self.lstm = nn.LSTM(WIDTH, WIDTH // 2, bidirectional=True, batch_first=True) if states == "lstm" else None
            self.key, self.query = nn.Linear(WIDTH, WIDTH), nn.Parameter(0.1 * torch.randn(WIDTH))
            self.classes = nn.Linear(WIDTH, 2)

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """``(scores (b, 2), A (b, 1, 1, LENGTH))``."""
        x = self.words(words)
        x = x if self.lstm is None else self.lstm(x)[0]
        weights = (self.key(x).tanh() @ self.query).softmax(1)
        return self.classes(torch.einsum("bn,bnc->bc", weights, x)), weights[:, None, None]


@measured(states=("embedding", "lstm"), strength=(0.0, 1.0), seed=range(2), steps=[400])
def cues(states: str, strength: float, seed: int, steps: int) -> dict[str, float]:
    """Accuracy on unseen sentences, with and without the cue, and the attention that it receives."""
    model = Classifier(states, seed)

    def loss(ready: Any, generator: Generator) -> Tensor:
        words, decides, labels = sentences(64, generator)
        scores, weights = ready(words)
        return F.cross_entropy(scores, labels) + penalty([weights], decides, strength)

    fit(model, loss, Recipe(steps, 1e-2, decay=0, seed=seed))
    words, decides, labels = sentences(2000, Generator().manual_seed(99))
    other = torch.randint(CUES, WORDS, words.shape, generator=Generator().manual_seed(98))
    with torch.no_grad():
        scores, weights = model(words)
        erased, _ = model(torch.where(decides, other, words))
    right, blind = ((told.argmax(1) == labels).double().mean().item() for told in (scores, erased))
    return {"right": right, "erased": blind, "mass": on(weights, decides).mean().item()}


def of(states: str) -> Cells:
    """Those of one network."""
    return cues.where(states=[states])


def is_hidden(found: Figures) -> Finding:
    """In every seed, accuracy by three points at most."""
    told, conditions = [], []
    for states in dict.fromkeys(found("states")):
        before, after = (found("mass", states=states, strength=x) for x in (0.0, 1.0))
        right, still = (found("right", states=states, strength=x) for x in (0.0, 1.0))
        told.append(
            f"{states}: attention on the cue {listed(before, '.0%')}, penalised {listed(after, '.2%')}, accuracy "
            f"{listed(right, '.1%')} and {listed(still, '.1%')}"
        )
        drops = [one - other for one, other in zip(right, still, strict=True)]
        conditions += [min(before) >= 0.3, max(after) < 0.01, max(drops) <= 0.03]
    return Finding.of("; ".join(told), *conditions)


def is_used(found: Figures) -> Finding:
    """Within five points of one half."""
    erased = found("erased", strength=1.0)
    far = max(abs(x - 0.5) for x in erased)
    return Finding.of(f"accuracy of the penalised networks without the cue {listed(erased, '.1%')}", far <= 0.05)
