"""Positional attention: one matrix for every input, which keeps working on numbers larger than those of training."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.studies.number_network import NumberNetwork
from regard.train.fit import Recipe, fit

N, TASKS = 8, ("sum", "min", "median", "sort")


def answers(task: str, x: Tensor) -> Tensor:
    """Of each prefix of a list the sum, the least and the median; or the list in order."""
    if task == "median":
        return torch.stack([x[:, : i + 1].quantile(0.5, dim=1, interpolation="midpoint") for i in range(N)], 1)
    return {"sum": x.cumsum(1), "min": x.cummin(1).values, "sort": x.sort(1).values}[task]


def numbers(count: int, reach: float, generator: Generator, beyond: float = 0.0) -> Tensor:
    """Lists from a random interval in [−reach, reach] each, one that leaves [−beyond, beyond]."""
    ends = reach * (2 * torch.rand(4 * count, 2, generator=generator) - 1)
    ends = ends[ends.abs().amax(1) > beyond][:count].sort(1).values
    return ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * torch.rand(count, N, generator=generator)


@measured(task=TASKS, kind=("positional", "standard"), steps=[600])
def network(task: str, kind: Literal["positional", "standard"], steps: int) -> dict[str, float]:
    """Squared errors on lists within [−2, 2], where it was trained, and that leave it to ±10 and ±20."""

    def loss(model: nn.Module, generator: Generator) -> Tensor:
        x = numbers(128, 2, generator)
        return F.mse_loss(model(x), answers(task, x))

    torch.manual_seed(0)
    model, errors = fit(NumberNetwork(N, kind), loss, Recipe(steps, rate=3e-3, decay=0.0)), {}
    for reach in (2, 10, 20):
        x = numbers(2000, reach, torch.Generator().manual_seed(5), 2.0 if reach > 2 else 0.0)
        with torch.no_grad():
            errors[f"error_{reach}"] = F.mse_loss(model(x), answers(task, x)).item()
    return errors


def keeps_a_third(found: Figures) -> Finding:
    """On numbers 5 and 10 times as large a third of a standard network's error or less, for every task."""
    shares = {
        (task, reach): found.one(f"error_{reach}", task=task, kind="positional")
        / found.one(f"error_{reach}", task=task, kind="standard")
        for task in TASKS
        for reach in (10, 20)
    }
    shown = "; ".join(f"{task} {shares[task, 10]:.2g} and {shares[task, 20]:.2g}" for task in TASKS)
    return Finding.of(
        f"error at 5 and 10 times the size over a standard network's: {shown}", max(shares.values()) <= 1 / 3
    )


@measured(sine=(0, 10))
def maps(sine: int) -> dict[str, float]:
    """How far A of one input is from that of another, and from the softmax of the encodings' products."""
    torch.manual_seed(0)
    mechanism = regard.build("positional", heads=3, places=19, size=7, sine=sine or None)
    first, second = (mechanism.weights(torch.randn(2, 3, 11, 5), torch.randn(2, 3, 11, 5)) for _ in range(2))
    encodings, query, key = (getattr(mechanism, name) for name in ("encodings", "query", "key"))
    placed = encodings[:11]
    want = torch.softmax((placed @ query) @ (placed @ key).mT / 7**0.5, -1)
    return {"inputs": (first - second).abs().max().item(), "apart": (first - want).abs().max().item()}


def is_the_same_for_every_input(found: Figures) -> Finding:
    """Bit for bit, and by its equation to 1e-6."""
    inputs, apart = max(found("inputs")), max(found("apart"))
    return Finding.of(f"between inputs {inputs:.0g}; its equation to {apart:.0e}", inputs == 0, apart < 1e-6)
