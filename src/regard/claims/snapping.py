"""What attention is left to tokens that tell nothing, and how it ranks those that do."""

from __future__ import annotations

import torch
from scipy.stats import spearmanr

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, interval, listed
from regard.studies.scan_and_snap import SharedSnap, Snap, crossed, world

DISTINCT, COMMON, TOLD = 8, 12, 0.4


@quick(seed=[0], steps=[300])
@null(blurred=[True])
@measured(blurred=[False], seed=range(5), steps=[2000])
def trained(blurred: bool, seed: int, steps: int) -> dict[str, float]:
    """The share of common tokens over what it was, and Spearman's ρ of the logits of distinct tokens and chances."""
    snap = Snap(world(DISTINCT, COMMON, TOLD, blurred), ratio=0.1)
    z, _ = snap.train(steps, seed)
    shares, before = snap.shares(z), snap.shares(torch.zeros_like(z))
    chances, own = torch.cat([world(DISTINCT, COMMON, TOLD)[0, :DISTINCT]] * 2), z[: 2 * DISTINCT]
    rank = float(spearmanr(own.numpy(), chances.numpy()).statistic) if own.std() > 0 else 0.0  # pyright: ignore
    return {
        "common": (shares[2 * DISTINCT :].sum() / before[2 * DISTINCT :].sum()).item(),
        "rank": rank,
    }


def forgets_the_common(found: Figures) -> Finding:
    """In every seed.

    A copy of the authors' code with the settings of their figures (one query of two answers, ten common tokens, rates
    of 1, momentum) keeps 47% and 53% after 100 steps, 49% and 54% after 3,000; with rates of 3 it keeps 28% and 27%.
    """
    common = found("common")
    return Finding.of(f"common tokens keep {listed(common, '.1%')} of their share", max(common) <= 0.1)


def ranks_the_distinct(found: Figures) -> Finding:
    """With ρ of at least 0.9 in every seed."""
    ranks = found("rank")
    return Finding.of(f"Spearman's ρ {listed(ranks, '.2f')}", min(ranks) >= 0.9)


@quick(seed=[0], steps=[300])
@null(blurred=[True])
@measured(ratio=(0.1, 0.3, 1.0), blurred=[False], seed=range(3), steps=[2000])
def ratios(ratio: float, blurred: bool, seed: int, steps: int) -> dict[str, float]:
    """The entropy of attention at the end, what it was before, and what it lost in the last quarter of training."""
    snap = Snap(world(DISTINCT, COMMON, TOLD, blurred), ratio=ratio)
    _, entropies = snap.train(steps, seed)
    quarter = entropies[-len(entropies) // 4]
    return {"entropy": entropies[-1].item(), "last": (quarter - entropies[-1]).item(), "first": entropies[0].item()}


def stops(found: Figures) -> Finding:
    """It falls, ends above 0.1 nats, loses at most a tenth of its fall in the last quarter; the higher the faster Y."""
    by = {ratio: sum(values) / len(values) for ratio, values in found.by("ratio", "entropy").items()}
    figure = "; ".join(f"{ratio:g}: {interval(values)}" for ratio, values in found.by("ratio", "entropy").items())
    fell = [a - b for a, b in zip(found("first"), found("entropy"), strict=True)]
    slow = all(last <= 0.1 * all_ for last, all_ in zip(found("last"), fell, strict=True))
    rises = list(by.values()) == sorted(by.values())
    return Finding.of(
        f"entropy at the end by ratio of rates: {figure}", min(fell) > 0.1, min(by.values()) > 0.1, slow, rises
    )


@quick(seed=[0], steps=[300])
@null(blurred=[True])
@measured(blurred=[False], seed=range(3), steps=[1000])
def shared(blurred: bool, seed: int, steps: int) -> dict[str, float]:
    """Of two queries that share tokens: the least of what tokens that tell gain over what they had, the most of what
    those do that tell for the other query alone; null: no token tells."""
    snap = SharedSnap(crossed(8, 0.3, blurred), ratio=0.1)
    z = snap.train(steps, seed)
    gains = (snap.shares(z) / snap.shares(torch.zeros_like(z))).unflatten(1, (3, 8)).mean(2)
    return {"own": gains.diagonal().min().item(), "other": max(gains[0, 1].item(), gains[1, 0].item())}


def each_query_by_itself(found: Figures) -> Finding:
    """In every seed tokens that tell gain, and those that tell for the other query lose, as common ones do."""
    own, other = found("own"), found("other")
    told = f"of tokens that tell {listed(own, '.2f')}, of those that tell for the other query {listed(other, '.2f')}"
    figure = f"share over what it was, {told}"
    return Finding.of(figure, min(own) > 1, max(other) < 1)
