"""A teacher of eight softmax layers made into hybrids with two: layers chosen by the KL, and at even distances."""

from __future__ import annotations

import torch
from torch import Generator

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.networks import LM, Config
from regard.tasks import batch as drawn
from regard.tasks.associative import AssociativeRecall
from regard.train.fit import Recipe
from regard.train.hybrids import restored
from regard.train.objective import Batch, Objective, cross_entropy, run, tune
from regard.train.objectives.distillation import Distillation, select

TASK = AssociativeRecall(pairs=8, vocabulary=64)
LENGTH, SIZE, DEPTH, KEPT = 64, 16, 8, 2
LINEAR = "gated_deltanet"


class Plain(Objective):
    """The plain loss."""

    def loss(self, model, batch, generator):
        return cross_entropy(model, batch)


def texts(generator: Generator, size: int = SIZE) -> Batch:
    """Recall with random ids between: its answers are what is learned."""
    ids, answers = drawn(TASK, generator, size, LENGTH)
    return Batch(ids, answers)


@torch.no_grad()
def recalled(model: LM) -> float:
    """The share of answers that are right."""
    batch = texts(Generator().manual_seed(77), 128)
    hit = run(model, batch).logits[:, :-1].argmax(-1) == batch.ids[:, 1:]
    return hit[batch.targets[:, 1:]].float().mean().item()


@measured(seed=range(2), steps=[1500])
def selected(seed: int, steps: int) -> dict[str, float]:
    """Recall of the teacher, and of hybrids with the chosen layers and even ones after the same second stage."""
    teacher = LM(Config(TASK.vocabulary, width=64, layers=f"softmax*{DEPTH}", heads=4), seed=seed)
    tune(teacher, Plain(), texts, Recipe(steps, seed=seed))
    held_out = [texts(Generator().manual_seed(78), 64)]
    first, ranked, last = (Recipe(max(1, steps * share // 12), 1e-3, seed=seed) for share in (4, 2, 6))
    chosen = select(teacher, LINEAR, KEPT, texts, first, ranked, held_out)
    found = {"teacher": recalled(teacher)}
    for name, layers in (("chosen", chosen.layers), ("even", [DEPTH // 4, 3 * DEPTH // 4])):
        student = restored(teacher, chosen.linear, layers)
        found[name] = recalled(tune(student, Distillation(teacher), texts, last))
    return found | {f"layer {place}": float(layer) for place, layer in enumerate(chosen.layers)}


def beats_even(found: Figures) -> Finding:
    """Ten points above even layers, and 95% of the teacher, in every seed."""
    chosen, even, teacher = (found(name) for name in ("chosen", "even", "teacher"))
    layers = ", ".join(listed(pair, ".0f") for pair in zip(found("layer 0"), found("layer 1"), strict=True))
    figure = (
        f"layers {layers}: recall {listed(chosen, '.0%')}, even {listed(even, '.0%')}, teacher {listed(teacher, '.0%')}"
    )
    pairs = zip(chosen, even, teacher, strict=True)
    return Finding.of(figure, all(own >= other + 0.1 and own >= 0.95 * whole for own, other, whole in pairs))
