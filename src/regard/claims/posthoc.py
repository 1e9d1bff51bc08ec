"""Explanations of classifiers of one attention layer: how many samples LIME wants, and which signs are seen."""

from __future__ import annotations

import torch

from regard.analysis.post_hoc import approximation, drawn, lime
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, interval, listed

WORDS, TEXTS = 10, 40


@measured(seed=range(10), samples=[5000])
def explained(seed: int, samples: int) -> dict[str, float]:
    """How far so many samples are from LIME's limit, how often its sign is that of the word's effect, and how well the
    closed approximation follows it; a word that goes becomes one that says nothing, as the paper's unknown word."""
    draw, unknown = torch.Generator().manual_seed(100 + seed), torch.zeros(11, dtype=torch.float64)
    model, errors, follows, right, lost = drawn(seed), [], [], [], []
    everything = torch.ones(WORDS, dtype=torch.bool)
    for text in range(TEXTS):
        x = torch.randn(WORDS, 11, generator=draw, dtype=torch.float64)
        limit, sampled = lime(model, x, unknown=unknown), lime(model, x, samples, text, unknown)
        errors.append(float((sampled - limit).norm() / limit.norm()))
        follows.append(float(torch.corrcoef(torch.stack([approximation(model, x, unknown), limit]))[0, 1]))
        effect = model(x) - model(x, everything & ~torch.eye(WORDS, dtype=torch.bool), unknown)
        against = effect < -0.1 * effect.abs().max()
        right += (limit[against] < 0).tolist()
        lost += (model.weights(x).mean(0)[against] < 0).tolist()
    return {
        "error": sorted(errors)[len(errors) // 2],
        "follows": sorted(follows)[len(follows) // 2],
        "signs": sum(right) / len(right),
        "weights": sum(lost) / len(lost),
    }


def samples_reach_the_limit(found: Figures) -> Finding:
    """The median error at most 5%."""
    errors = found("error")
    return Finding.of(f"5,000 samples are {max(errors):.1%} from the limit, in the median text", max(errors) <= 0.05)


def signs_are_seen(found: Figures) -> Finding:
    """95% or more of the signs of LIME, on average over models, none of those of weights, which are never negative."""
    signs, weights = found("signs"), found("weights")
    figure = f"{interval([100 * share for share in signs], '.1f')}% of words that speak against the output"
    least, most = found.mean("signs"), max(weights)
    return Finding.of(f"{figure} have negative coefficients, {most:.0%} negative weights", least >= 0.95, most == 0)


def approximation_follows(found: Figures) -> Finding:
    """A median correlation of 0.9 at least, in every model."""
    follows = found("follows")
    figure = f"correlation of the approximation with the limit, in the median text, {listed(follows, '.2f')}"
    return Finding.of(figure, min(follows) >= 0.9)
