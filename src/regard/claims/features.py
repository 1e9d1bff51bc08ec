"""Random features: one attention layer beside an MLP of as many, on targets that do not know the order of tokens."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Generator, Tensor

from regard.claims.cells import Cells, measured, null, quick
from regard.claims.figures import Figures, Finding, interval
from regard.studies import random_features as study

D, KEYS, MAPS, LAST = 8, 12, 60, 2000


def target_of(name: str, query: Tensor, keys: Tensor, spoiled: bool) -> Tensor:
    """``mean_i (β·x_i)²``, or ``mean_i relu(x_0·x_i) β·x_i``.

    Spoiled, the mean is of the first token alone, which knows the order, and the correlation is with the query of
    another example, which nothing shows.
    """
    first = keys[..., 0]
    if name == "mean":
        return first[:, 0].square() if spoiled else first.square().mean(1)
    query = query.roll(1, 0) if spoiled else query
    return (torch.relu((query[:, None] * keys).sum(-1)) * first).mean(1)


@quick(seed=[0], n=[1000])
@null(spoiled=[True])
@measured(target=("mean", "correlation"), n=(250, 1000, 2000), spoiled=[False], seed=range(5))
def risk(target: str, n: int, spoiled: bool, seed: int) -> dict[str, float]:
    """Test risks over the target's variance: attention's with either mean of its maps, and the MLP's."""
    generator = Generator().manual_seed(seed)
    total = n + 500 + LAST
    tokens = torch.randn(total, KEYS + 1, D, generator=generator, dtype=torch.float64)
    y = target_of(target, tokens[:, 0], tokens[:, 1:], spoiled)
    marked = torch.cat([tokens, torch.ones_like(tokens[..., :1])], -1)
    query, keys, size = marked[:, 0], marked[:, 1:], (KEYS + 1) * (D + 1)
    flat = torch.randn(MAPS * (D + 1), size, generator=generator, dtype=torch.float64) * size**-0.5
    features = {
        "zero": study.attention_features(query, keys, study.gaussian(MAPS, D + 1, 0.0, generator)),
        "identity": study.attention_features(query, keys, study.gaussian(MAPS, D + 1, 1.0, generator)),
        "mlp": study.network_features(query, keys, flat),
    }
    return {name: study.risk_of_ridge(x, y, (n, 500)) for name, x in features.items()}


def risks(target: str) -> Cells:
    """Those of one target."""
    return risk.where(target=[target])


def is_half(found: Figures) -> Finding:
    """At most half of the MLP's with the most examples, in the mean over seeds, and falling with them."""
    n = max(found("n"))
    ours, theirs = (found(name, n=n) for name in ("zero", "mlp"))
    by = [sum(values) / len(values) for values in found.by("n", "zero").values()]
    figure = f"risk at {n}: attention {interval(ours)}, MLP {interval(theirs)}"
    falls = all(later <= earlier for earlier, later in pairwise(by))
    return Finding.of(figure, sum(ours) <= 0.5 * sum(theirs), falls)


def prefers_the_identity(found: Figures) -> Finding:
    """By a tenth in every seed, with the most examples."""
    n = max(found("n"))
    ours, theirs = (found(name, n=n) for name in ("identity", "zero"))
    figure = f"risk at {n}: mean I {interval(ours)}, mean zero {interval(theirs)}"
    return Finding.of(figure, all(a <= 0.9 * b for a, b in zip(ours, theirs, strict=True)))
