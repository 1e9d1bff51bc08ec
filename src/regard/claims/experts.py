"""Language models of source code with a mixture of experts: how sure routers are, and how often they change late."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Generator, nn

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, interval
from regard.claims.testbeds.source import VOCABULARY, characters, held_out_loss, windows
from regard.networks.token_experts import ExpertsLM
from regard.train.fit import Recipe, Step, fit

LATE, LENGTH = 0.8, 64


def choices(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The experts of each token in each layer, in order, and the mean entropy of p̃ in nats."""
    with torch.no_grad():
        _, shares = model.routed(ids)
    every = torch.stack(shares)
    entropy = -torch.special.xlogy(every, every).sum(-1).mean().item()
    return every.topk(2, -1).indices.sort(-1).values, entropy


@quick(seed=[0], steps=[10])
@null(graph=["none"])
@measured(graph=("none", "similarity", "attention"), seed=range(3), steps=[800])
def routed(graph: str, seed: int, steps: int) -> dict[str, float]:
    """Held-out nats a character, the share of tokens whose experts change in the last fifth of training, entropy."""
    model = ExpertsLM(VOCABULARY, graph=graph, seed=seed)  # pyright: ignore[reportArgumentType]
    codes, kept = characters(False), {}

    def loss(ready: nn.Module, drawn: Generator) -> torch.Tensor:
        return model.loss(windows(codes, 16, LENGTH, drawn))

    def note(step: Step) -> bool:
        if step.number == max(1, round(LATE * steps)):
            kept["late"] = copy.deepcopy(model)
        return False

    fit(model, loss, Recipe(steps, seed=seed), until=note)
    ids = windows(characters(True), 64, LENGTH, Generator().manual_seed(7))
    last, entropy = choices(model, ids)
    before, _ = choices(kept["late"], ids)
    switched = (last != before).any(-1).double().mean().item()
    return {"loss": held_out_loss(model, count=256), "switched": switched, "entropy": entropy}


def graphs(found: Figures) -> list[str]:
    """Those that are no identity, or the null's."""
    return [graph for graph in found.by("graph", "loss") if graph != "none"]


def told(found: Figures, figure: str, form: str) -> str:
    """A figure of each graph."""
    return "; ".join(f"{graph} {interval(values, form)}" for graph, values in found.by("graph", figure).items())


def switches_less(found: Figures) -> Finding:
    """Both graphs, on average over seeds; perplexity by the mean loss."""
    figure = f"tokens that change experts: {told(found, 'switched', '.3f')}; nats {told(found, 'loss', '.3f')}"
    plain, nats = found.mean("switched", graph="none"), found.mean("loss", graph="none")
    conditions = [found.mean("switched", graph=graph) < plain for graph in graphs(found)]
    conditions += [found.mean("loss", graph=graph) <= nats + 0.01 for graph in graphs(found)]
    return Finding.of(figure, bool(graphs(found)), *conditions)


def is_surer(found: Figures) -> Finding:
    """Both graphs, on average over seeds."""
    plain = found.mean("entropy", graph="none")
    lower = [found.mean("entropy", graph=graph) < plain for graph in graphs(found)]
    return Finding.of(f"entropy in nats: {told(found, 'entropy', '.3f')}", bool(graphs(found)), *lower)
