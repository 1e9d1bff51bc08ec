"""When heads that match prefixes form, what comes with them, and what smeared keys spare."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from regard.analysis.cmr_heads import CMRHeads
from regard.analysis.copying_heads import copying_eigenvalues
from regard.analysis.induction_heads import InductionHeads, repeats
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.networks.lm import LM, Config
from regard.networks.untied import UntiedLM
from regard.train.fit import Recipe, Step, fit

VOCABULARY, BLOCK, EVERY = 61, 23, 40


def attention_only(layers: str, seed: int) -> LM:
    """A language model of attention alone."""
    return LM(Config(VOCABULARY, 64, layers, heads=4, inner=0), seed)


def learned(model: LM, seed: int, steps: int, look=lambda step: None) -> LM:
    """The model after so many batches of random tokens that are repeated once, of every token of which it learns."""

    def loss(ready: Any, generator: Generator) -> Tensor:
        block = int(torch.randint(9, 32, (1,), generator=generator))
        ids = torch.randint(VOCABULARY, (16, block), generator=generator).repeat(1, 2)
        return cross_entropy(ready(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    def watched(step: Step) -> bool:
        if step.number % EVERY == 0 or step.number == steps:
            look(step.number)
        return False

    return fit(model, loss, Recipe(steps, 3e-3, seed=seed), until=watched)  # pyright: ignore


def held_out() -> list[Any]:
    """Eight texts of a repetition."""
    return repeats(VOCABULARY, BLOCK, 8, seed=5)


@torch.no_grad()
def in_context(model: LM) -> float:
    """The score of learning in context: nats a token of the repetition less those of what is repeated."""
    ids = torch.stack([text.ids for text in held_out()])
    losses = cross_entropy(model(ids)[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(0)
    return float(losses[BLOCK:].mean() - losses[: BLOCK - 1].mean())


def matching(model: LM) -> tuple[int, int, float]:
    """The head that matches prefixes best, and its score."""
    return InductionHeads().run(model, held_out()).ranked()[0]


@measured(mechanism=("softmax", "smeared_keys"), seed=range(3), steps=[800])
def in_one_layer(mechanism: str, seed: int, steps: int) -> dict[str, float]:
    """The best prefix matching of a trained layer, and what it learns in context."""
    model = learned(attention_only(mechanism, seed), seed, steps)
    return {"best": matching(model)[2], "context": in_context(model)}


def smeared_alone(found: Figures) -> Finding:
    """From 0.4 on with smeared keys, below with plain ones, in every seed."""
    plain, smeared = (found("best", mechanism=name) for name in ("softmax", "smeared_keys"))
    saved = [-value for value in found("context", mechanism="smeared_keys")]
    figure = (
        f"best head of one layer {listed(smeared, '.2f')} with smeared keys, {listed(plain, '.2f')} without; a "
        f"repetition then saves {listed(saved, '.2f')} nats a token"
    )
    return Finding.of(figure, min(smeared) >= InductionHeads.threshold, max(plain) < InductionHeads.threshold)


@measured(depth=(1, 2), seed=range(3), steps=[2000])
def formed(depth: int, seed: int, steps: int) -> dict[str, float]:
    """The best prefix matching of a trained model of attention alone."""
    return {"best": matching(learned(attention_only(f"softmax*{depth}", seed), seed, steps))[2]}


def need_two_layers(found: Figures) -> Finding:
    """Heads from 0.4 on form in every model of two layers, in none of one."""
    one, two = (found("best", depth=depth) for depth in (1, 2))
    figure = f"best head of two layers {listed(two, '.2f')}, of one {listed(one, '.2f')}"
    return Finding.of(figure, min(two) >= InductionHeads.threshold, max(one) < InductionHeads.threshold)


@measured(seed=range(3), steps=[2000])
def in_training(seed: int, steps: int) -> dict[str, float]:
    """Two layers: steps after which prefix matching, learning in context and likeness to human recall are half of what
    they come to."""
    model = attention_only("softmax*2", seed)
    curve: list[tuple[int, float, float, float]] = []

    def look(step: int) -> None:
        nearest = min(CMRHeads((5, 4)).run(model, held_out()).distances().values())
        curve.append((step, matching(model)[2], -in_context(model), 1 - nearest))

    look(0)
    learned(model, seed, steps, look)
    half = {
        name: next(row[0] for row in curve if row[i] >= (curve[0][i] + curve[-1][i]) / 2)
        for i, name in ((1, "matching"), (2, "context"), (3, "recall"))
    }
    figures = {f"{name} at": float(step) for name, step in half.items()}
    figures |= {"began": curve[0][1], "best": curve[-1][1], "saved": curve[-1][2]}
    return figures | {"near before": 1 - curve[0][3], "near after": 1 - curve[-1][3]}


@measured(seed=range(3), steps=[2000])
def with_rows_of_its_own(seed: int, steps: int) -> dict[str, float]:
    """Two layers whose output matrix is not the embeddings: the eigenvalues of OV of the head that matches prefixes
    best, and on average of the others of its layer and of the layer below."""
    config = Config(VOCABULARY, 64, "softmax*2", heads=4, inner=0)
    model = learned(UntiedLM(config, seed), seed, steps)
    layer, head, best = matching(model)
    signs = copying_eigenvalues(model)
    others = float((signs[layer].sum() - signs[layer][head]) / (len(signs[layer]) - 1))
    return {"best": best, "layer": layer, "copies": float(signs[layer][head]), "others": others} | {
        "below": float(signs[0].mean())
    }


def at_once(found: Figures, one: str, other: str) -> bool:
    """Whether two things are half-way within a tenth of the training of each other, in every seed."""
    places = zip(found(one), found(other), found("steps"), strict=True)
    return all(abs(a - b) <= 0.1 * steps for a, b, steps in places)


def comes_together(found: Figures) -> Finding:
    """The score rises by 0.5 at least, and is half-way within a tenth of the training of learning in context."""
    began, best, there, context = (found(name) for name in ("began", "best", "matching at", "context at"))
    figure = (
        f"prefix matching from {listed(began, '.2f')} to {listed(best, '.2f')}, half-way after "
        f"{listed(there, '.0f')} steps, learning in context after {listed(context, '.0f')}"
    )
    rises = [b - a for a, b in zip(began, best, strict=True)]
    return Finding.of(figure, min(rises) >= 0.5, at_once(found, "matching at", "context at"))


def it_copies(found: Figures) -> Finding:
    """The eigenvalues of the best head are positive by 0.5 at least, in every seed."""
    copies, others, below = found("copies"), found("others"), found("below")
    figure = (
        f"eigenvalues of OV of the head that matches {listed(copies, '+.2f')}, of others of its layer "
        f"{listed(others, '+.2f')}, of the layer below {listed(below, '+.2f')}"
    )
    return Finding.of(figure, min(copies) >= 0.5)


def becomes_recall(found: Figures) -> Finding:
    """The nearest head's distance falls to half or less, and half-way within a tenth of the training of matching."""
    before, after, there, recall = (found(x) for x in ("near before", "near after", "matching at", "recall at"))
    figure = (
        f"distance of the nearest head from human recall {listed(before, '.2f')} untrained, {listed(after, '.2f')} "
        f"trained, half-way after {listed(recall, '.0f')} steps, prefix matching after {listed(there, '.0f')}"
    )
    falls = [a <= b / 2 for a, b in zip(after, before, strict=True)]
    return Finding.of(figure, all(falls), at_once(found, "matching at", "recall at"))
