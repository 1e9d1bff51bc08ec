"""How in-context classification emerges, and what of it depends on the data."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, interval, listed
from regard.studies.abrupt_learning import Bursts, InductionNet, NestedLogits

BATCH, RATE, EVERY, WHOLE = 128, 1e-3, 50, 16_000
LOW, HIGH = 0.25, 0.9
Curve = list[tuple[int, float, float]]


def accuracy(model: InductionNet, bursts: Bursts, test: str, count: int = 512) -> float:
    """The share of labels that are right, of the context's test or the weights'."""
    tokens, label = bursts.batch(count, Generator().manual_seed(77), test)
    with torch.no_grad():
        return (model(tokens).argmax(-1) == label).double().mean().item()


def looks_back(model: InductionNet, bursts: Bursts) -> float:
    """The mean share that labels give to the item before them, in the first layer."""
    tokens, _ = bursts.batch(128, Generator().manual_seed(77), "context")
    with torch.no_grad():
        first = model.maps(tokens)[0]
    rows = torch.arange(1, bursts.length, 2)
    return first[:, rows, rows - 1].mean().item()


def learned(
    bursts: Bursts, reduced: bool, seed: int, steps: int
) -> tuple[InductionNet, list[tuple[int, float, float]]]:
    """A trained network, and its accuracy in context and look at the token before, every so many steps."""
    model, generator = InductionNet(bursts, reduced, seed), Generator().manual_seed(1000 + seed)
    optimiser, curve = torch.optim.Adam(model.parameters(), RATE), []
    for step in range(steps):
        if step % EVERY == 0:
            curve.append((step, accuracy(model, bursts, "context"), looks_back(model, bursts)))
        tokens, label = bursts.batch(BATCH, generator)
        optimiser.zero_grad()
        F.cross_entropy(model(tokens), label).backward()
        optimiser.step()
    curve.append((steps, accuracy(model, bursts, "context"), looks_back(model, bursts)))
    return model, curve


@quick(seed=[0], steps=[100])
@null(burst=[0])
@measured(burst=[1], seed=range(3), steps=[4000])
def emerges(burst: int, seed: int, steps: int) -> dict[str, float]:
    """With 16,384 classes: accuracy in context at the end, steps from a quarter to nine tenths of it, and the look at
    the token before at the start and where accuracy passes a quarter. Null: no bursts."""
    bursts = Bursts(16_384, burst, seed=seed)
    _, curve = learned(bursts, False, seed, steps)
    below = [step for step, right, _ in curve if right < LOW]
    above = [step for step, right, _ in curve if right >= HIGH]
    window = float(above[0] - below[-1]) if above else float(WHOLE)
    at = next((back for _, right, back in curve if right >= LOW), curve[-1][2])
    return {"context": curve[-1][1], "window": window, "began": curve[0][2], "before": at}


def is_abrupt(found: Figures) -> Finding:
    """In every seed, to more than 0.9 at its highest."""
    windows, ends = found("window"), found("context")
    figure = f"from {LOW:.0%} to {HIGH:.0%} right in {listed(windows, '.0f')} steps, at the end {listed(ends, '.0%')}"
    return Finding.of(figure, max(windows) < WHOLE / 10)


def is_preceded(found: Figures) -> Finding:
    """When a quarter is right, labels give the item before them at least twice what they gave it untrained."""
    began, before, ends = (found(name) for name in ("began", "before", "context"))
    figure = f"share of the token before: untrained {listed(began, '.2f')}, as learning sets in {listed(before, '.2f')}"
    twice = all(b >= 2 * a for a, b in zip(began, before, strict=True))
    return Finding.of(figure, twice, min(ends) >= LOW)


WORLDS = {"few, single": (1024, 1), "many, single": (16_384, 1), "few, bursts": (1024, 4)}


def ends_of(world: str, reduced: bool, alike: bool, seed: int, steps: int) -> dict[str, float]:
    """Accuracy in context and in weights after training; ``alike``: no bursts anywhere."""
    classes, burst = WORLDS[world]
    bursts = Bursts(classes, 0 if alike else burst, seed=seed)
    model, _ = learned(bursts, reduced, seed, steps)
    return {"context": accuracy(model, bursts, "context"), "weights": accuracy(model, bursts, "weights")}


@quick(seed=[0], steps=[30])
@null(alike=[True])
@measured(world=tuple(WORLDS), alike=[False], seed=range(3), steps=[4000])
def traded(world: str, alike: bool, seed: int, steps: int) -> dict[str, float]:
    """What the network learns in context and in weights, from few or many classes, in bursts or not."""
    return ends_of(world, False, alike, seed, steps)


@quick(seed=[0], steps=[30])
@null(alike=[True])
@measured(world=tuple(WORLDS), alike=[False], seed=range(3), steps=[4000])
def reduced(world: str, alike: bool, seed: int, steps: int) -> dict[str, float]:
    """The same of the head of two parameters."""
    return ends_of(world, True, alike, seed, steps)


def depends_on_the_data(found: Figures) -> Finding:
    """On average over seeds, by 20 points each."""
    context, weights = ({world: found.mean(name, world=world) for world in WORLDS} for name in ("context", "weights"))
    told = "; ".join(
        f"{world}: {interval(found('context', world=world), '.2f')} in context, "
        f"{interval(found('weights', world=world), '.2f')} in weights"
        for world in WORLDS
    )
    few, others = "few, single", list(WORLDS)[1:]
    return Finding.of(
        told,
        *(context[world] >= context[few] + 0.2 for world in others),
        *(weights[world] <= weights[few] - 0.2 for world in others),
    )


@quick(rate=[1.0])
@null(learned=[1])
@measured(learned=(1, 2, 3), rate=(0.1, 0.3, 1.0), steps=[10_000])
def nested(learned: int, rate: float, steps: int) -> dict[str, float]:
    """Steps until a quarter, and from there to nine tenths, where the readout, the match too, or all are learned."""
    chances = NestedLogits(learned).train(rate, steps, HIGH)
    wait = float((chances < LOW).sum())
    return {"wait": wait, "jump": float(len(chances) - wait), "end": chances[-1].item()}


def waits_and_jumps(found: Figures) -> Finding:
    """At every rate the jump of all three takes a tenth of the wait at most; each that is added makes that longer."""
    waits, jumps = (found.by("learned", name) for name in ("wait", "jump"))
    figure = "; ".join(
        f"{count} learned {listed(wait, '.0f')} steps to {LOW:.0%}, {listed(jumps[count], '.0f')} on to {HIGH:.0%}"
        for count, wait in waits.items()
    )
    most = max(waits)
    longer = [max(waits[a]) < max(waits[b]) for a, b in pairwise(sorted(waits))]
    short = [jump <= wait / 10 for wait, jump in zip(waits[most], jumps[most], strict=True)]
    return Finding.of(f"logits at rates of 0.1, 0.3 and 1, {figure}", *short, *longer, min(found("end")) >= HIGH)
