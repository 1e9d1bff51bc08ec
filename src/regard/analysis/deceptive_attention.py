"""Attention that hides what it uses: a penalty on the mass of chosen tokens, and how much of it is left where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by

Over = Literal["mean", "worst"]
LEAST = 1e-6
"""Of the mass that is left to other tokens, so that its logarithm is finite."""


@published(
    "deceptive_attention",
    family="observe",
    kind="analysis",
    row=7,
    title="Learning to Deceive with Attention-Based Explanations",
    arxiv="1909.07913",
    year=2020,
    fidelity="hand values",
    claim=(
        Claim(
            "with states of an LSTM, attention on the word that decides falls from 30% to under 1%, accuracy hardly",
            cells="deceit.of(states='lstm')",
            holds="deceit.is_hidden",
        ),
        Claim(
            "with embeddings alone, attention on the word that decides falls so too, and accuracy hardly",
            cells="deceit.of(states='embedding', steps=10000)",
            holds="deceit.is_hidden",
        ),
        Claim(
            "with a transformer's encoder, of which the last layer is penalised, it falls so too in that layer",
            cells="deceit.of(states='encoder')",
            holds="deceit.is_hidden",
        ),
        Claim(
            "the word is used all the same: without it accuracy is chance",
            cells="deceit.cues",
            holds="deceit.is_used",
        ),
    ),
)
@shown_by(lambda: [Sample("by hand", penalty, {"known": by_hand})])
def penalty(
    weights: Sequence[Tensor], forbidden: Tensor, strength: float = 1.0, over: Over = "mean", penalised: int = -1
) -> Tensor:
    """What is added to a task's loss, so that a model learns to give some tokens no attention.

        R = −λ log(1 − Σ_j m_j a_j),   of several heads the mean of R or that of the head of most mass

    Args:
        weights: A of each layer, ``(b, heads, n, m)``. forbidden: m_j, ``(b, m)`` bool. strength: λ.
        over: heads, mean or worst. penalised: the layer that is meant; rows are averaged.

    Raises:
        ValueError: no layers, a negative strength, or another ``over``.

    Paper: Pruthi et al., arXiv 1909.07913. What people think of such explanations is a study of them and no part here.
    """
    if strength < 0:
        raise wrong("strength", str(strength), "at least 0")
    if over not in ("mean", "worst"):
        raise wrong("over", repr(over), "mean or worst")
    if not weights:
        raise wrong("weights", "no layers", "A of at least one")
    mass = on(weights[penalised], forbidden)
    hidden = -(1 - mass).clamp(min=LEAST).log()
    return strength * (hidden.mean() if over == "mean" else hidden.amax(1).mean())


def on(weights: Tensor, forbidden: Tensor) -> Tensor:
    """``(b, heads, n)``: the mass of ``weights (b, heads, n, m)`` on the tokens ``(b, m)``."""
    return (weights * forbidden[:, None, None].to(weights.dtype)).sum(3)


@torch.no_grad()
def mass_by_layer(weights: Sequence[Tensor], forbidden: Tensor) -> list[tuple[float, float]]:
    """For each layer the mean mass on the tokens, and that of the head that has most; those not penalised included.

    A model may hide in one layer what it shows in others, so that all are to be told.
    """
    found = []
    for layer in weights:
        by_head = on(layer, forbidden).mean((0, 2))
        found.append((float(by_head.mean()), float(by_head.max())))
    return found


def by_hand() -> tuple[Tensor, Tensor]:
    """Masses ½ and ¾ of two heads: λ (log 2 + log 4) / 2, or λ log 4; nothing forbidden: 0."""
    weights = torch.tensor([[[[0.5, 0.25, 0.25]], [[0.25, 0.5, 0.25]]]], dtype=torch.float64)
    none, first = torch.zeros(1, 3, dtype=torch.bool), torch.tensor([[False, True, True]])
    got = [penalty([weights], first, 2.0), penalty([weights], first, 2.0, "worst"), penalty([weights], none, 2.0)]
    two = torch.log(torch.tensor(2.0, dtype=torch.float64))
    return torch.stack(got), torch.stack([3 * two, 4 * two, 0 * two])
