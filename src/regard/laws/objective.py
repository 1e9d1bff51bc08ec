"""The laws of objectives: plain training at the neutral value of a dial, nothing left behind, nothing remembered.

They are held on a small Llama with grouped heads and random weights. Batches mark tokens as ``user`` and ``answer``,
and have an ``advantage``; examples name layers 0 and 1, heads 0 to 5, and tokens below 29.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Generator, Tensor

from regard.core.kinds import Sample
from regard.laws.finding import Broken, Unclaimed, same
from regard.laws.small import VOCABULARY, llama
from regard.train.fit import Recipe, fit
from regard.train.objective import Batch, Objective, cross_entropy, tune

LENGTH, TEXTS, STEPS = 13, 3, 4
CLOSE = 1e-4
STEP = 5e-4
"""How far weights are moved, of their own size, for differences in the place of a derivative; norms are in float32."""
POINTS = {1: 8, -1: -8, 2: -1, -2: 1}
"""Weights of four values, twelfths, whose sum is a step's derivative but for its fifth power."""


def model() -> Any:
    """The model under examination, a copy for each use."""
    return deepcopy(llama(2))


def batches(generator: Generator) -> Batch:
    """Texts of random tokens, the second padded on the left and the third on the right."""
    ids = torch.randint(3, VOCABULARY, (TEXTS, LENGTH), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :2] = mask[2, -3:] = False
    at = torch.arange(LENGTH).expand_as(ids)
    marks = {"user": (at > 2) & (at < 6), "answer": (at > 6) & (at < 10)}
    marks["advantage"] = torch.randn(TEXTS, 1, generator=generator).expand(-1, LENGTH)
    return Batch(ids.masked_fill(~mask, 0), None, mask, marks)


def drawn(seed: int = 0) -> Generator:
    """Where what is random comes from."""
    return Generator().manual_seed(seed)


class Trained:
    """An objective under examination."""

    def __init__(self, sample: Sample) -> None:
        self.objective: Objective = sample.thing

    def weights(self, objective: Objective, folder: Path | None = None, stop: int = STEPS) -> Tensor:
        """All weights after some steps of training, stopped after ``stop`` of them."""
        trained = model()

        def report(step: int, value: float) -> None:
            if step == stop < STEPS:
                raise InterruptedError

        recipe = Recipe(STEPS, rate=1e-2)
        with suppress(InterruptedError):
            tune(trained, objective, batches, recipe, folder, report=report)
        return flat(trained)


def flat(trained: Any) -> Tensor:
    """All weights of a model in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in trained.parameters()])


def neutral(subject: Trained) -> str:
    """At the neutral value of its dial it is plain training bit by bit, and else it is not."""
    objective = subject.objective
    if objective.dial is None:
        raise Unclaimed("it has no dial")
    plain, batch = model(), batches(drawn(5))
    fit(plain, lambda ready, generator: cross_entropy(ready, batches(generator)), Recipe(STEPS, rate=1e-2))  # pyright: ignore[reportArgumentType]
    idle = objective.at(objective.dial[1])
    if not torch.equal(subject.weights(idle), flat(plain)):
        raise Broken(f"with {objective.dial[0]} = {objective.dial[1]} it trains otherwise")
    if torch.equal(subject.weights(objective), flat(plain)):
        raise Broken("it trains as without it")
    with torch.no_grad():
        told = idle(model(), batch, drawn())
        logs = model()(input_ids=batch.ids, attention_mask=batch.real.long(), position_ids=places(batch)).logits
    logs, found = logs.log_softmax(-1), []
    for row, text in enumerate(batch.ids):
        real = batch.real[row].nonzero()[:, 0].tolist()
        found += [logs[row, before, text[at]] for before, at in pairwise(real)]
    return f"{same(told[None], -torch.stack(found).mean()[None], CLOSE, 'the mean of −log p'):.0e}"


def places(batch: Batch) -> Tensor:
    """Positions of the tokens of a batch, counted without padding."""
    return (batch.real.long().cumsum(1) - 1).clamp(min=0)


def resumes(subject: Trained) -> str:
    """A run that is stopped and goes on from its folder ends with the same weights, bit by bit."""
    whole = subject.weights(subject.objective)
    with TemporaryDirectory() as folder:
        for stop in (2, STEPS):
            found = subject.weights(subject.objective, Path(folder), stop)
    if not torch.equal(found, whole):
        raise Broken(f"weights are {(found - whole).abs().max().item():.1e} off those of an unbroken run")
    return f"after 2 of {STEPS} steps"


def leaves(subject: Trained) -> str:
    """A loss leaves the model, its gradients and the random numbers of everybody else as they were."""
    trained, batch = model(), batches(drawn(1))
    before, state = deepcopy(trained.state_dict()), torch.get_rng_state()
    hooks, trains = count_hooks(trained), [(p.requires_grad, p.grad) for p in trained.parameters()]
    subject.objective(trained, batch, drawn())
    if not torch.equal(torch.get_rng_state(), state):
        raise Broken("it draws from the random numbers of everybody")
    if count_hooks(trained) != hooks:
        raise Broken("hooks are left in the model")
    if any(not torch.equal(value, before[name]) for name, value in trained.state_dict().items()):
        raise Broken("weights are others after a loss")
    if [(p.requires_grad, p.grad) for p in trained.parameters()] != trains:
        raise Broken("weights are trained otherwise, or have gradients, after a loss")
    return "bit by bit"


def count_hooks(trained: Any) -> int:
    """How many hooks a model has."""
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in trained.modules())


def seeded(subject: Trained) -> str:
    """The same batch and generator give the same loss, whatever was asked before, in any order."""
    trained, found = model(), []
    for seed in (0, 1, 0):
        torch.manual_seed(len(found))
        found.append(subject.objective(trained, batches(drawn(seed)), drawn(seed)).detach())
    if not torch.equal(found[0], found[2]):
        raise Broken(f"a loss of {found[0].item():.6g} is {found[2].item():.6g} when it is asked again")
    return f"{found[0].item():.3f} and {found[1].item():.3f}"


def gradients(subject: Trained) -> str:
    """The gradient is that of the loss: along a random direction it agrees with differences."""
    trained, batch = model().double(), batches(drawn(2))
    subject.objective(trained, batch, drawn()).backward()
    source, expected = drawn(3), torch.zeros((), dtype=torch.float64)
    directions = []
    for parameter in trained.parameters():
        noise = torch.randn(parameter.shape, generator=source, dtype=torch.float64)
        directions.append(noise * parameter.detach().norm() / noise.norm())
        expected += (directions[-1] * (0 if parameter.grad is None else parameter.grad)).sum()
    found = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for steps, share in POINTS.items():
            moved = model().double()
            for parameter, direction in zip(moved.parameters(), directions, strict=True):
                parameter += steps * STEP * direction
            found += share * subject.objective(moved, batch, drawn()) / (12 * STEP)
    return f"{same(found[None], expected[None], 1e-2, 'the derivative along a direction'):.0e}"


def padding(subject: Trained) -> str:
    """A text has the same loss alone as padded, on either side."""
    trained, batch, worst = model(), batches(drawn(4)).rows(torch.tensor([0])), 0.0
    with torch.no_grad():
        alone = subject.objective(trained, Batch(batch.ids, marks=batch.marks), drawn())
        for sides in ((4, 0), (0, 4)):
            held = {name: torch.nn.functional.pad(mark, sides) for name, mark in (batch.marks or {}).items()}
            ids, mask = (torch.nn.functional.pad(x, sides) for x in (batch.ids, batch.real))
            found = subject.objective(trained, Batch(ids, None, mask, held), drawn())
            worst = max(worst, same(found[None], alone[None], CLOSE, f"padded by {sides}"))
    return f"{worst:.0e}"


LAWS: dict[str, Callable[[Trained], str]] = {
    law.__name__: law for law in (neutral, resumes, leaves, seeded, gradients, padding)
}


def subject(example: Sample, device: str = "cpu") -> Trained:
    """What the laws look at."""
    return Trained(example)


def example(thing: Objective, **given: Any) -> Sample:
    """An objective from elsewhere as an example."""
    return Sample(type(thing).__name__, thing, given)
