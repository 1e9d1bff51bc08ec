"""CMR heads: heads whose weights around an earlier occurrence fall off like human recall, by a model of that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Analysis, Head, Prompt, Result, subject_of
from regard.analysis.induction_heads import repeats
from regard.analysis.planted import last_plus, samples
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.probes.head_statistics import Moments
from regard.probes.places import Lags

REACH, STUDIED = 5, 100
"""Lags to either side that are fitted, and items that are studied, as in the authors' code."""
GRID = (20, 10)
"""Steps of the grid from 0 to 1, of either β and of γ."""
RECALLS, LONGEST = 48, 40
"""Recalls of each point of the grid, and recalled items of each, at most."""


@dataclass(frozen=True)
class Curves(Result):
    """The mean weight of each head at each lag from the last occurrence of the row's token.

    Args:
        moments: by layer, of ``(heads, 2 reach + 1)``. grid: steps of the points that are fitted.
    """

    moments: Mapping[int, Moments]
    grid: tuple[int, int] = GRID
    name = "cmr_fit"

    def merge(self, other: Curves) -> Curves:
        """The curves over the rows of both."""
        both = dict(self.moments)
        for layer, seen in other.moments.items():
            both[layer] = both[layer] + seen if layer in both else seen
        return replace(self, moments=dict(sorted(both.items())))

    def distances(self) -> dict[Head, float]:
        """The CMR distance of each head."""
        return {
            (layer, head): fit(curve, self.grid)[0]
            for layer, seen in self.moments.items()
            for head, curve in enumerate(seen.estimate().value)
        }

    def table(self) -> list[dict[str, Any]]:
        return [
            {"layer": layer, "head": head, "distance": x, self.name: 1 - x}
            for (layer, head), x in self.distances().items()
        ]


@published(
    "cmr_heads",
    family="observe",
    kind="analysis",
    row=330,
    title="Linking In-context Learning in Transformers to Human Episodic Memory",
    arxiv="2405.14992",
    year=2024,
    fidelity="hand values",
    claim=(
        Claim(
            "induction heads are nearer to human recall than other heads",
            cells="cmr.tiny",
            holds="cmr.induction_heads_are_nearest",
        ),
        Claim(
            "of a point of the grid recalls give back a curve that is near",
            cells="cmr.recovered",
            holds="cmr.recall_is_recovered",
        ),
        Claim(
            "heads become like human recall in training when they come to match prefixes",
            cells="emergence.in_training",
            holds="emergence.becomes_recall",
        ),
    ),
)
class CMRHeads(Analysis[Prompt, Curves]):
    """The distance of a head's lag curve from what contextual maintenance and retrieval recalls.

        a_k = mean weight at lag k from the last occurrence, −5 ≤ k ≤ 5, less the least of them
        distance = min over β_enc, β_rec, γ of  mean_k (a_k − s c_k)² / var_k a,   s = max a / max c

    c is the conditional response probability of CMR, less its least, from recalls that are simulated: items are studied
    in a row, M = (I − (1 − β_enc) T)⁻¹ T; one is recalled with probability ∝ Mᵀ t; the context moves to
    (1 − β_rec) t + β_rec t_IN, t_IN ∝ (1 − γ) f + γ M f. A flat head has no distance. Score is 1 − distance; a head
    counts from 0.5 on.

    Paper: Ji-An et al., arXiv 2405.14992; grid, lags, scaling and threshold as in the authors' code, which recalls from
    20 items a thousand times each; here `RECALLS` recalls begin at different items.

    Args:
        grid: steps of β and of γ; the published grid takes half a minute, once.
    """

    name, threshold = "cmr_fit", 0.5

    @classmethod
    def examples(cls) -> list[Sample]:
        whole: Any = cls((4, 2))
        return samples(whole, repeats(50, 29, 5), lambda ids: last_plus(ids, 1))

    def __init__(self, grid: tuple[int, int] = GRID) -> None:
        if min(grid) < 1:
            raise wrong("grid", f"{grid}", "at least one step of each")
        self.grid = grid

    def run(self, subject: Any, data: Iterable[Prompt]) -> Curves:
        found: Curves | None = None
        for prompt in data:
            probe = Lags(REACH)
            subject_of(subject).show(prompt.ids[None], [probe])
            one = Curves(probe.moments, self.grid)
            found = one if found is None else found.merge(one)
        if found is None:
            raise wrong("data", "no prompts", "at least one")
        return found


def fit(curve: Tensor, grid: tuple[int, int] = GRID) -> tuple[float, tuple[float, float, float]]:
    """The distance of a curve ``(11,)`` from the nearest of CMR, and its β_enc, β_rec and γ; infinite if it is flat."""
    rise = curve.double() - curve.min()
    if not float(rise.max()) > 1e-9:
        return float("inf"), (float("nan"),) * 3  # pyright: ignore[reportReturnType]
    curves, points = responses(*grid)
    errors = (curves * rise.max() - rise).square().mean(1) / rise.var(correction=0)
    best = int(errors.nan_to_num(nan=torch.inf).argmin())
    return float(errors[best]), points[best]


@cache
def responses(betas: int, gammas: int) -> tuple[Tensor, list[tuple[float, float, float]]]:
    """``(points, 11)``: the curves of all points of the grid from 0 to 1, and these points."""
    curves, points = [], []
    grid = torch.cartesian_prod(torch.arange(betas + 1) / betas, torch.arange(gammas + 1) / gammas)
    for step in range(1, betas + 1):
        curves.append(scaled(recall(step / betas, grid[:, 0], grid[:, 1], RECALLS, seed=step)))
        points += [(step / betas, float(rec), float(gamma)) for rec, gamma in grid]
    return torch.cat(curves), points


def scaled(curves: Tensor) -> Tensor:
    """From none to one."""
    rise = curves - curves.min(1, keepdim=True).values
    return rise / rise.max(1, keepdim=True).values


def recall(encoding: float, recs: Tensor, gammas: Tensor, recalls: int, seed: int) -> Tensor:
    """``(points, 11)`` float64: how often each lag from one recalled item to the next occurs, of points β_rec and γ.

    Args:
        encoding: β_enc. recs, gammas: ``(points,)``. recalls: of each point, from items that are spread evenly.
    """
    draw, states = torch.Generator().manual_seed(seed), STUDIED + 1  # the last absorbs
    onward = torch.diag(torch.ones(STUDIED), 1)
    memory = torch.linalg.inv(torch.eye(states) - (1 - encoding) * onward) @ onward
    start = torch.linspace(0, STUDIED - 1, recalls).long().repeat(len(recs))
    context, last = torch.eye(states)[start], start
    rec, gamma = (x.float().repeat_interleave(recalls)[:, None] for x in (recs, gammas))
    counts = torch.zeros(len(recs), 2 * REACH + 1, dtype=torch.float64)
    alive, owner = torch.ones(len(start), dtype=torch.bool), torch.arange(len(recs)).repeat_interleave(recalls)
    for _ in range(LONGEST):
        chances = (context @ memory).clamp(min=0)
        alive = alive & (chances.sum(1) > 1e-12)
        item = torch.where(alive[:, None], chances, 1.0).multinomial(1, generator=draw)[:, 0]
        alive = alive & (item < STUDIED)
        lag = item - last
        near = alive & (lag.abs() <= REACH)
        counts.index_put_((owner[near], lag[near] + REACH), torch.ones(1, dtype=torch.float64), accumulate=True)
        seen = torch.eye(states)[item]
        incoming = (1 - gamma) * seen + gamma * (seen @ memory.T)
        incoming = incoming / incoming.norm(dim=1, keepdim=True)
        context = (1 - rec) * context + rec * incoming
        context, last = context / context.norm(dim=1, keepdim=True), item
        if not alive.any():
            break
    return counts / counts.sum(1, keepdim=True).clamp(min=1)
