"""Explanations of classifiers of one attention layer: how many samples LIME wants, and which signs are seen."""

from __future__ import annotations

import torch

from regard.analysis.post_hoc import drawn, lime
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding

WORDS, TEXTS = 10, 40


@measured(seed=range(3))
def explained(seed: int) -> dict[str, float]:
    """How far 5,000 samples are from LIME's limit, and how often its sign is that of leaving the word out."""
    draw = torch.Generator().manual_seed(100 + seed)
    model, errors, right, lost = drawn(seed), [], [], []
    everything = torch.ones(WORDS, dtype=torch.bool)
    for text in range(TEXTS):
        x = torch.randn(WORDS, 11, generator=draw, dtype=torch.float64)
        limit, sampled = lime(model, x), lime(model, x, 5000, text)
        errors.append(float((sampled - limit).norm() / limit.norm()))
        effect = model(x, everything) - model(x, everything & ~torch.eye(WORDS, dtype=torch.bool))
        against = effect < -0.1 * effect.abs().max()
        right += (limit[against] < 0).tolist()
        lost += (model.weights(x).mean(0)[against] < 0).tolist()
    return {
        "error": sorted(errors)[len(errors) // 2],
        "signs": sum(right) / len(right),
        "weights": sum(lost) / len(lost),
    }


def samples_reach_the_limit(found: Figures) -> Finding:
    """The median error at most 5%."""
    errors = found("error")
    return Finding.of(f"5,000 samples are {max(errors):.1%} from the limit, in the median text", max(errors) <= 0.05)


def signs_are_seen(found: Figures) -> Finding:
    """95% or more of the signs of LIME, none of those of weights, which are never negative."""
    signs, weights = found("signs"), found("weights")
    figure = f"{min(signs):.0%} of words that speak against the output have negative coefficients"
    return Finding.of(f"{figure}, {max(weights):.0%} negative weights", min(signs) >= 0.95, max(weights) == 0)
