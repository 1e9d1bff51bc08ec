"""Anchors of rules: bounds in random draws, what saying a rule again does, and loading it again."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, listed
from regard.studies.rule_anchors import compliance, entropy_bound, fidelity_bound

TOKENS = 48
QUERY, KEY = torch.arange(TOKENS)[:, None], torch.arange(TOKENS)
MASKS = {
    "causal": KEY <= QUERY,
    "bidirectional": KEY <= TOKENS,
    "window": (KEY <= QUERY) & (QUERY - KEY < 16),
    "window with sinks": (KEY <= QUERY) & ((QUERY - KEY < 8) | (KEY < 4)),
}


def measured_rows(mask: str, anchors: int, margin: float, draws: int, generator: Generator) -> dict[str, Tensor]:
    """Attention on anchors, its entropy and their bounds, of rows that see an anchor and another token."""
    seen = MASKS[mask].expand(TOKENS, TOKENS)
    scores = torch.randn(draws, TOKENS, generator=generator, dtype=torch.float64)
    anchor = torch.rand(draws, TOKENS, generator=generator).argsort(1) < anchors
    highest = scores.masked_fill(anchor, -torch.inf).amax(1, keepdim=True)
    scores = torch.where(anchor, highest + margin + torch.rand(scores.shape, generator=generator), scores)
    weights = scores[:, None].masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
    fidelity = (weights * anchor[:, None]).sum(-1)
    entropy = -torch.special.xlogy(weights, weights).sum(-1)
    own, rest = ((seen & which[:, None]).sum(-1).double() for which in (anchor, ~anchor))
    both = (own > 0) & (rest > 0)
    found = {"fidelity": fidelity, "entropy": entropy, "anchors": own, "others": rest}
    return {name: x[both] for name, x in found.items()}


@quick(seed=[0])
@null(real=[False])
@measured(mask=tuple(MASKS), anchors=(1, 4, 16), real=[True], seed=range(4))
def drawn(mask: str, anchors: int, real: bool, seed: int) -> dict[str, float]:
    """By how much attention and entropy of 210 draws miss their bounds at most; null: anchors without their margin."""
    generator, margin = Generator().manual_seed(seed), 1.5
    found = measured_rows(mask, anchors, margin if real else -margin, 210, generator)
    least = fidelity_bound(found["anchors"], found["others"], margin)
    most = entropy_bound(found["fidelity"], found["anchors"], found["others"])
    return {
        "under": (least - found["fidelity"]).max().item(),
        "over": (found["entropy"] - most).max().item(),
        "rows": float(len(least)),
    }


def keep_to_the_bounds(found: Figures) -> Finding:
    """To rounding."""
    under, over = max(found("under")), max(found("over"))
    figure = f"under its bound by {max(under, 0):.0e}, entropy over its bound by {max(over, 0):.0e}"
    return Finding.of(f"{sum(found('rows')):,.0f} rows: {figure}", under <= 1e-12, over <= 1e-12)


@quick(seed=[0])
@measured(kind=("kernelized", "cross"), anchors=(1, 4, 16), seed=range(4))
def architectures(kind: str, anchors: int, seed: int) -> dict[str, float]:
    """The same bounds where weights are positive features' products, causal, and where queries are of another text.

    The margin of a row is what the draw has: how far its least anchor lies above the highest of its other tokens.
    """
    generator = Generator().manual_seed(seed)
    n = TOKENS if kind == "kernelized" else 31
    q, k = (torch.randn(210, size, 8, generator=generator, dtype=torch.float64) for size in (n, TOKENS))
    anchor = (torch.rand(210, TOKENS, generator=generator).argsort(1) < anchors)[:, None]
    scores = q @ k.mT / 8**0.5
    seen = torch.ones(n, TOKENS, dtype=torch.bool)
    if kind == "kernelized":
        scores = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).log()
        seen = MASKS["causal"]
    own, rest = seen & anchor, seen & ~anchor
    margin = scores.masked_fill(~own, torch.inf).amin(-1) - scores.masked_fill(~rest, -torch.inf).amax(-1)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    fidelity, entropy = (weights * anchor).sum(-1), -torch.special.xlogy(weights, weights).sum(-1)
    both = own.any(-1) & rest.any(-1)
    counts = [which.sum(-1).double()[both] for which in (own, rest)]
    least = counts[0] / (counts[0] + counts[1] * (-margin[both]).exp())
    most = entropy_bound(fidelity[both], *counts)
    return {
        "under": (least - fidelity[both]).max().item(),
        "over": (entropy[both] - most).max().item(),
        "rows": float(both.sum()),
    }


@quick(seed=[0])
@null(margin=[-20.0])
@measured(anchors=(1, 2, 4, 8), margin=(1.0, 4.0), seed=range(5))
def redundant(anchors: int, margin: float, seed: int) -> dict[str, float]:
    """The mean attention on anchors and its mean entropy, of 200 draws."""
    found = measured_rows("bidirectional", anchors, margin, 200, Generator().manual_seed(seed))
    return {"fidelity": found["fidelity"].mean().item(), "entropy": found["entropy"].mean().item()}


def trade(found: Figures) -> Finding:
    """Both rise at every step, by the largest margin."""
    told, rises = [], False
    for margin in dict.fromkeys(found("margin")):
        means = [
            [sum(values) / len(values) for values in found.by("anchors", name, margin=margin).values()]
            for name in ("fidelity", "entropy")
        ]
        rises = all(b > a for row in means for a, b in pairwise(row))
        told.append(
            f"a margin of {margin:g}: attention {listed(means[0], '.2f')}, entropy {listed(means[1], '.2f')} nats"
        )
    return Finding.of(f"{listed(dict.fromkeys(found('anchors')), 'd')} anchors by {'; by '.join(told)}", rises)


@quick(lost=[0.05])
@null(lost=[0.0])
@measured(lost=(0.01, 0.05, 0.2), every=(0, 4, 16), steps=[256])
def reloaded(lost: float, every: int, steps: int) -> dict[str, float]:
    """How often a rule is kept."""
    return {"kept": compliance(0.95, lost, every, steps)}


def keeps_more(found: Figures) -> Finding:
    """More the more often, at every rate of forgetting."""
    means = [found.mean("kept", every=every) for every in (0, 16, 4)]
    more = all(
        found.one("kept", every=4, lost=lost)
        > found.one("kept", every=16, lost=lost)
        > found.one("kept", every=0, lost=lost)
        for lost in dict.fromkeys(found("lost"))
    )
    return Finding.of(f"kept {listed(means, '.1%')} with one load, every 16th and every 4th step", more)
