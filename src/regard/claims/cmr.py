"""Heads and human recall: lag curves of regard-tiny's heads, and points of the model of recall that are found again."""

from __future__ import annotations

import torch

from regard.analysis.base import run_together
from regard.analysis.cmr_heads import CMRHeads, fit, recall, scaled
from regard.analysis.induction_heads import InductionHeads, repeats
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.hosts.small import load

MATCHING = 0.5
"""From which score on a head is an induction head here."""


@measured()
def tiny() -> dict[str, float]:
    """Distances of regard-tiny's induction heads and of all others, on random tokens that repeat."""
    model, tokenizer = load("tiny")
    texts = repeats(model.config.vocab_size, start=tokenizer.bos_token_id)
    distances = CMRHeads().run(model, texts).distances()
    scores = run_together([InductionHeads()], model, texts)["induction"]
    matching = [head for head in distances if scores.of(head) >= MATCHING]
    farthest = max(distances[head] for head in matching)
    others = [x for head, x in distances.items() if head not in matching]
    return {
        "heads": len(matching),
        "farthest": farthest,
        "nearest other": min(others),
        "below": sum(x < 0.5 for x in others),
    }


def induction_heads_are_nearest(found: Figures) -> Finding:
    """Every one is nearer than every other head."""
    farthest, nearest = found.one("farthest"), found.one("nearest other")
    figure = (
        f"distances of regard-tiny's {found.one('heads')} induction heads at most {farthest:.2g}, of others "
        f"{nearest:.2g} or more; {found.one('below')} others below 0.5"
    )
    return Finding.of(figure, farthest < nearest)


@measured(point=(0, 1, 2))
def recovered(point: int) -> dict[str, float]:
    """The distance of a long simulated recall from the nearest curve of the grid, and the parameters found."""
    true = ((0.5, 0.6, 0.2), (0.7, 0.8, 0.1), (0.4, 0.7, 0.3))[point]
    encoding, rec, gamma = true
    curve = scaled(recall(encoding, torch.tensor([rec]), torch.tensor([gamma]), 4000, seed=99))[0]
    distance, best = fit(curve)
    error = max(abs(found - of) for found, of in zip(best, true, strict=True))
    return {"distance": distance, "error": error}


def recall_is_recovered(found: Figures) -> Finding:
    """Each parameter within a tenth of the range."""
    errors = found("error")
    figure = (
        f"parameters are found to {max(errors):.2f} of a range of 1, distances at most {max(found('distance')):.2g}"
    )
    return Finding.of(figure, max(errors) <= 0.1)
