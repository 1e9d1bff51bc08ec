"""Sparse averages: by construction, fitted without attention, and the size that a head needs."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, listed
from regard.studies import sparse_averaging as study
from regard.train.fit import Recipe, fit

N, NAMED, E = 64, 3, 4


def worst(count: int, dim: int, seed: int, batch: int = 20, named: str = "signs") -> float:
    """The largest error of a construction over some draws, with random codes or such as lie along axes."""
    generator = Generator().manual_seed(seed)
    signs = study.signs(count, dim, generator).double()
    codes = signs if named == "signs" else torch.eye(dim, dtype=torch.float64)[torch.arange(count) % dim]
    chosen, values, wanted = study.draw(batch, count, NAMED, E, generator)
    return (study.constructed(chosen, values.double(), codes) - wanted).norm(dim=-1).max().item()


@quick(seed=[0])
@null(dim=[8])
@measured(dim=[96], seed=range(5))
def constructed(dim: int, seed: int) -> dict[str, float]:
    """The largest error over 20 draws of 64 positions. A head of size 8 cannot tell 64 positions apart."""
    return {"error": worst(N, dim, seed)}


def is_near(found: Figures) -> Finding:
    """Below 0.05."""
    return Finding.of(
        f"largest error {max(found('error')):.3f}, head of size {found('dim')[0]}", max(found("error")) < 0.05
    )


class Flat(nn.Module):
    """All positions' values and names in one row, a hidden layer, all averages."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(N * (E + NAMED), hidden), nn.ReLU(), nn.Linear(hidden, N * E))

    def forward(self, chosen: Tensor, values: Tensor) -> Tensor:
        x = torch.cat([chosen / N - 0.5, values], -1).flatten(1)
        return self.layers(x).unflatten(-1, (N, E))


class Head(nn.Module):
    """The constructed head: what the baseline is beside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(study.signs(N, dim, Generator().manual_seed(0)))

    def forward(self, chosen: Tensor, values: Tensor) -> Tensor:
        return study.constructed(chosen, values, self.codes)


@quick(rate=[1e-3], steps=[20])
@null(model=["head"])
@measured(model=["flat"], rate=(3e-4, 1e-3, 3e-3), steps=[1000])
def fitted(model: str, rate: float, steps: int) -> dict[str, float]:
    """The mean error of a trained network, of as many parameters as the head has and twice that; null: the head."""
    torch.manual_seed(0)
    network = Flat(24) if model == "flat" else Head(96)

    def loss(network: nn.Module, generator: Generator) -> Tensor:
        chosen, values, wanted = study.draw(64, N, NAMED, E, generator)
        return (network(chosen, values) - wanted).square().sum(-1).mean()

    if model == "flat":
        fit(network, loss, Recipe(steps, rate, decay=0.0))
    chosen, values, wanted = study.draw(256, N, NAMED, E, Generator().manual_seed(1))
    with torch.no_grad():
        error = (network(chosen, values) - wanted).norm(dim=-1).mean().item()
    return {"error": error, "parameters": sum(p.numel() for p in network.parameters())}


def stays_apart(found: Figures) -> Finding:
    """Above 0.2 at every rate."""
    errors, counts = found("error"), found("parameters")
    figure = f"mean error {listed(errors, '.2f')} at three rates, {counts[0]:,.0f} parameters"
    return Finding.of(figure, min(errors) > 0.2)


@quick(count=[16, 64, 128], seed=[0])
@null(named=["axes"])
@measured(count=(16, 64, 256, 1024), named=["signs"], seed=range(3))
def sizes(count: int, named: str, seed: int) -> dict[str, float]:
    """The least size of a head, in steps of 4, that averages to 0.05; null: codes along axes, which are not random."""
    dim = 8
    while worst(count, dim, seed, 4 if count > 256 else 10, named) >= 0.05:
        dim += 4
    return {"dim": float(dim)}


def grows_as_log(found: Figures) -> Finding:
    """Over log N it is the same to a factor of 1.5."""
    dims = {count: sum(values) / len(values) for count, values in found.by("count", "dim").items()}
    rates = [dim / math.log(count) for count, dim in dims.items()]
    figure = f"sizes {listed(dims.values(), '.0f')} for {listed(dims, 'd')} positions"
    return Finding.of(f"{figure}: {min(rates):.1f} to {max(rates):.1f} of log N", max(rates) <= 1.5 * min(rates))
