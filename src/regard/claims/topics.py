"""Topics in embeddings and in attention."""

from __future__ import annotations

from functools import cache

import torch
from torch import Generator, Tensor

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, interval
from regard.studies.topic_structure import Topics

RATE, BATCH = 1e-2, 40


def descended(parameter: Tensor, loss, steps: int, seed: int) -> Tensor:
    """A parameter after Adam, ``loss`` being of the parameter and a generator.

    Without weight decay: with 1e-4 the logits of attention stay so small that the ratio of `attended` ends at 1.6.
    """
    parameter, generator = parameter.requires_grad_(), Generator().manual_seed(seed)
    optimiser = torch.optim.Adam([parameter], RATE)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(parameter, generator).backward()
        optimiser.step()
    return parameter.detach()


@quick(seed=[0], steps=[100])
@null(blurred=[True])
@measured(blurred=[False], seed=range(5), steps=[400])
def embedded(blurred: bool, seed: int, steps: int) -> dict[str, float]:
    """The effect size: products of embeddings of one topic's words less those of others, over their deviation."""
    world, size = Topics(blurred=blurred), 64
    start = 0.1 * torch.randn(world.vocabulary, size, generator=Generator().manual_seed(100 + seed))
    found = descended(start, lambda e, drawn: world.loss(e @ e.mT, None, world.texts(BATCH, drawn)), steps, seed)[:-1]
    products, same = found @ found.mT, world.same()
    other = ~same & ~torch.eye(len(same), dtype=torch.bool)
    near, far = products[same], products[other]
    return {"effect": ((near.mean() - far.mean()) / ((near.var() + far.var()) / 2).sqrt()).item()}


def are_near(found: Figures) -> Finding:
    """An effect size of 1 at least in every seed."""
    return Finding.of(f"effect size {interval(found('effect'), '.1f')}", min(found("effect")) >= 1)


@cache
def values_of(blurred: bool, seed: int, steps: int) -> Tensor:
    """W after stage one."""
    world = Topics(blurred=blurred)
    start = torch.zeros(world.vocabulary, world.vocabulary)
    return descended(start, lambda w, drawn: world.loss(w, None, world.texts(BATCH, drawn)), steps, seed)


@quick(seed=[0], steps=[100])
@null(blurred=[True])
@measured(blurred=[False], seed=range(5), steps=[400])
def attended(blurred: bool, seed: int, steps: int) -> dict[str, float]:
    """The mean attention of a word to another of its topic, over that to one of another topic, both shown alike."""
    world, values = Topics(blurred=blurred), values_of(blurred, seed, steps)
    start = torch.zeros(world.vocabulary, world.vocabulary)
    found = descended(start, lambda b, drawn: world.loss(values, b, world.texts(BATCH, drawn)), steps, seed + 50)
    weights, same = found[:-1, :-1].softmax(-1), world.same()
    other = ~same & ~torch.eye(len(same), dtype=torch.bool)
    return {"ratio": (weights[same].mean() / weights[other].mean()).item()}


def attend_to_their_own(found: Figures) -> Finding:
    """Twice as much in every seed."""
    return Finding.of(f"same topic over different ones {interval(found('ratio'), '.2f')}", min(found("ratio")) >= 2)
