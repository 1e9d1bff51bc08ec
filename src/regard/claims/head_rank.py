"""The size of a head: which matrices it can be, what a model loses by small ones, and finding the nearest point."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from regard.blocks.attention import Attention
from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding, listed
from regard.core.sizes import Sizes
from regard.mechanisms.scored.softmax import Softmax
from regard.networks import LM, Config
from regard.projections.base import Grouped
from regard.studies.head_rank import RankNetwork, fit_head, head_for, nearest, sphere
from regard.train.fit import Recipe, fit

N, D, HEADS = 24, 16, (1, 4, 16)


def stochastic(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(n, n, generator=generator, dtype=torch.float64), -1)


@quick(size=(N // 4, N), seed=[0])
@measured(size=(2, N // 4, N, 2 * N), seed=range(3))
def any_matrix(size: int, seed: int) -> dict[str, float]:
    """The error of a head of this size that is to attend by a given matrix: searched, and in closed form."""
    target, x = stochastic(N, seed), torch.randn(N, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    q, k = fit_head(target, size, seed=seed)
    w_q, w_k = head_for(target, x, size)
    pairs = {"searched": (q, k), "exact": (x @ w_q, x @ w_k)}
    return {
        name: (torch.softmax(q @ k.mT * size**-0.5, -1) - target).abs().max().item() for name, (q, k) in pairs.items()
    }


def needs_n(found: Figures) -> Finding:
    """From n on under 1e-4 by search and 1e-12 in closed form, with n / 4 and less over 1e-2."""
    enough = [row for row in found.rows if row["size"] >= N]
    small = [row for row in found.rows if row["size"] < N]
    searched, exact = (max(row[name] for row in enough) for name in ("searched", "exact"))
    least = min(min(row["searched"], row["exact"]) for row in small)
    figure = f"from d_p = n = {N} on search {searched:.0e}, closed form {exact:.0e}; at n / 4 and less over {least:.2f}"
    return Finding.of(figure, searched < 1e-4, exact < 1e-12, least > 1e-2)


@quick(steps=[10])
@measured(heads=HEADS, form=("fixed", "divided"), seed=range(2), steps=[300])
def language_model(heads: int, form: str, seed: int, steps: int) -> dict[str, float]:
    """Loss of a small LM with heads of the size of its context, or of the width over their number."""
    text = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_bytes()
    ids, n, width = torch.tensor(list(text)).clamp(max=127), 32, 32
    size = n if form == "fixed" else width // heads
    model = LM(Config(128, width=width, layers="softmax", heads=heads, head_dim=size, inner=64), seed=seed)

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        starts = torch.randint(len(ids) - 8192 - n, (32,), generator=generator)
        return model.loss(ids[starts[:, None] + torch.arange(n)])

    fit(model, loss, Recipe(steps, rate=5e-3, seed=seed))
    with torch.no_grad():
        return {"loss": model.loss(ids[-8192:].view(-1, n)).item()}


def never_hurts(found: Figures) -> Finding:
    """From one number of heads to the next the loss never rises by 0.5% with the fixed size, and does else."""
    rises, shown = {"fixed": [], "divided": []}, []
    for form, rise in rises.items():
        for seed in range(2):
            row = found("loss", form=form, seed=seed)
            rise.append(max(after / before - 1 for before, after in pairwise(row)))
            shown.append(f"{form} {listed(row, '.2f')}")
    figure = f"loss with 1, 4 and 16 heads, two seeds: {'; '.join(shown)}"
    return Finding.of(figure, max(rises["fixed"]) < 0.005, min(rises["divided"]) > 0.005)


@measured(count=(4, 64), beta=(100, 1000))
def full_rank(count: int, beta: int) -> dict[str, float]:
    """The share of 5,000 draws whose largest weight is the nearest point's, and the squared error."""
    points, y, answer = sphere(5000, count, D, torch.Generator().manual_seed(1))
    out, weights = nearest(points, y, beta)
    chosen = points[torch.arange(5000), weights.argmax(1)]
    right = (chosen == answer).all(-1).double().mean().item()
    return {"right": right, "error": (out - answer).square().sum(-1).mean().item()}


def picks_the_nearest(found: Figures) -> Finding:
    """Always; and the error falls with β."""
    right = found("right")
    errors = [found("error", count=count) for count in (4, 64)]
    falls = all(high < 0.05 and low < 0.15 * high for high, low in errors)
    shown = "; ".join(listed(pair, ".3f") for pair in errors)
    return Finding.of(
        f"right on {min(right):.0%} of 5,000 draws; squared error at β = 100 and 1000 {shown}", min(right) == 1, falls
    )


def trained(model: nn.Module, call: Callable[..., Tensor], count: int, d: int, steps: int, rate: float) -> float:
    """The squared error of a model after training."""

    def loss(ready: Any, generator: Generator) -> Tensor:
        points, y, answer = sphere(128, count, d, generator)
        return (call(ready, points, y) - answer).square().sum(-1).mean()

    fit(model, loss, Recipe(steps, rate=rate, decay=0.0))
    with torch.no_grad():
        return sum(loss(model, torch.Generator().manual_seed(999 + i)).item() for i in range(16)) / 16


@quick(steps=[60])
@measured(case=("16 1", "4 4", "4 16"), steps=[1000])
def low_rank(case: str, steps: int) -> dict[str, float]:
    """Squared error of one trained layer, 8 points in 16 dimensions, by its heads' rank and number."""
    rank, heads = map(int, case.split())
    torch.manual_seed(0)
    layer = Attention(Softmax(), Grouped(Sizes(D, heads, heads, rank, D)))
    return {"error": trained(layer, lambda m, points, y: m(y[:, None], context=points)[:, 0], 8, D, steps, 0.03)}


def misses_it(found: Figures) -> Finding:
    """16 heads of rank 4 keep over 3 times the error of one of rank 16, and less than 4 of rank 4."""
    one, four, many = (found.one("error", case=case) for case in ("16 1", "4 4", "4 16"))
    figure = f"squared error {one:.2f} for one head of rank 16, {many:.2f} for 16 of rank 4, {four:.2f} for 4"
    return Finding.of(figure, many >= 3 * one, many < four)


@quick(steps=[60])
@measured(case=("8 1 1", "2 16 1", "2 16 2"), steps=[1000])
def depth(case: str, steps: int) -> dict[str, float]:
    """Squared error of a whole transformer, 4 points in 8 dimensions, by rank, heads and depth."""
    rank, heads, layers = map(int, case.split())
    torch.manual_seed(0)
    network = RankNetwork(8, rank, heads, layers, width=32, inner=64)
    return {"error": trained(network, lambda m, points, y: m(points, y), 4, 8, steps, 3e-3)}


def narrows(found: Figures) -> Finding:
    """A second layer brings the error nearer to that of full rank."""
    full, one, two = (found.one("error", case=case) for case in ("8 1 1", "2 16 1", "2 16 2"))
    figure = f"rank 2, 16 heads: squared error {one:.2f}, with a second layer {two:.2f}, full rank {full:.2f}"
    return Finding.of(figure, full < two < one)
