"""What heads do in given texts, and what the texts' losses owe to them: a mean over the texts, with its error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from regard.analysis.base import Analysis, Head, HeadAnalysis, HeadScores, Prompt, sample_moments
from regard.analysis.head_importance import loss_rises, slopes
from regard.analysis.sweep import by_layer
from regard.core.errors import wrong
from regard.probes.head_statistics import Distance, Entropy, Moments, RowMean


class RowStatistic(HeadAnalysis):
    """The mean over all rows of all texts of what a probe reads in each: of entropies, or of distances.

    Args:
        probe: a new one for each text.
    """

    threshold = math.inf

    def __init__(self, probe: type[RowMean]) -> None:
        self.made, self.name = probe, probe.name

    def probe(self, prompt: Prompt) -> RowMean:
        return self.made()


class LossEstimate(Analysis[Prompt, HeadScores]):
    """Change of a text's loss, in nats a token, where a head is taken out, to first order: for all heads at once.

        −(1 / (n − 1)) Σ_t z_{h,t} · ∂L/∂z_{h,t}

    The mean over texts, each of which counts once. Texts of two tokens or more.
    """

    name = "loss_estimate"

    def run(self, subject: Any, data: Iterable[Prompt]) -> HeadScores:
        rows = [
            {layer: -dots.sum(1).double() / (len(text.ids) - 1) for layer, dots in slopes(subject, text.ids).items()}
            for text in data
        ]
        if not rows:
            raise wrong("data", "no prompts", "at least one")
        return HeadScores(self.name, sample_moments({at: torch.stack([row[at] for row in rows]) for at in rows[0]}))


class LossRise(Analysis[Prompt, HeadScores]):
    """Rise of a text's loss, in nats a token, where a head is taken out: a pass for each of some heads.

    The mean over texts, each of which counts once; NaN for the other heads of their layers.

    Args:
        heads: those that are taken out, one at a time. counts: heads of each layer.
    """

    name = "loss_rise"

    def __init__(self, heads: Sequence[Head], counts: dict[int, int]) -> None:
        self.heads, self.counts = sorted(heads), counts

    def run(self, subject: Any, data: Iterable[Prompt]) -> HeadScores:
        texts = [text.ids for text in data]
        if not texts:
            raise wrong("data", "no prompts", "at least one")
        rises, moments = loss_rises(subject, texts, self.heads), {}
        for layer, those in by_layer(self.heads).items():
            values = torch.zeros(len(texts), self.counts[layer], dtype=torch.float64)
            count = torch.zeros(self.counts[layer], dtype=torch.float64)
            for head in those:
                values[:, head], count[head] = rises[layer, head], len(texts)
            moments[layer] = Moments(count, torch.full_like(count, math.inf), values.sum(0), values.square().sum(0))
        return HeadScores(self.name, moments)


STATISTICS = (Entropy, Distance)
"""The probes of what heads do in the texts themselves."""
