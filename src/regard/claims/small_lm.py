"""Small language models, trained alike at equal parameters: what is gained and lost beside softmax attention."""

from __future__ import annotations

from functools import partial
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from regard.claims.cells import Measured, measured
from regard.claims.figures import Figures, Finding, interval
from regard.claims.testbeds.source import VOCABULARY, characters, held_out_loss, windows
from regard.core.layout import Layout
from regard.core.spec import parse_layers
from regard.experiments.cell import Cell
from regard.networks.lm import LM, Config
from regard.projections.gates import Gates
from regard.train.fit import Recipe, Step, fit

SEEDS, STEPS, LENGTH, SIZE, RATE = range(3), 400, 64, 16, 3e-3


@measured()
def trained(
    layers: str, projection: str, kv_heads: int | None, rate: float, seed: int, steps: int
) -> dict[str, float | None]:
    """A model of width 64 and four heads, with the parameters of softmax's by its inner width, after training.

    Gives held-out nats a character at 64 and 256 characters, the largest norm of the gradient after a quarter of the
    steps over their median, the weight on the first token, how far the last state moves by repeating the last token,
    the share of next characters told, and how far gates are opened where there are some.
    """
    config = Config(VOCABULARY, 64, layers, heads=4, kv_heads=kv_heads, projection=projection)
    plain = LM(Config(VOCABULARY, 64, f"softmax*{config.depth}", heads=4), 0).parameter_count
    model = LM(config.fitted(plain, lambda sizes: LM(sizes, 0).parameter_count), seed)
    codes, norms = characters(False), []

    def loss(ready: Any, generator: torch.Generator) -> Tensor:
        return model.loss(windows(codes, SIZE, LENGTH, generator))

    fit(model, loss, Recipe(steps, rate, seed=seed), until=partial(noted, norms))
    late = norms[len(norms) // 4 :]
    figures = {"loss": held_out_loss(model), "longer": held_out_loss(model, length=256, count=128)}
    return figures | {"spike": max(late) / median(late)} | read_off(model)


def noted(norms: list[float], step: Step) -> bool:
    norms.append(step.norm)
    return False


@torch.no_grad()
def read_off(model: LM) -> dict[str, float | None]:
    """What attention and states of a trained model say on held-out text."""
    ids = windows(characters(True), 256, LENGTH, torch.Generator().manual_seed(7))
    right = (model(ids)[:, :-1].argmax(-1) == ids[:, 1:]).float().mean().item()
    firsts, opened = [], []
    for attention, x in attended(model, ids[:64]):
        q, k, v, signals = attention.inputs(x, Layout(causal=True))
        if attention.mechanism.traits.linear:
            weights = attention.mechanism.weights(q, k, Layout(causal=True), **signals).abs()[:, :, 8:]
        else:
            few = {name: signal[:2] for name, signal in signals.items()}  # a backward pass for each row
            rows = slice(8, q.shape[2])
            weights = attention.mechanism.influence(q[:2], k[:2], v[:2], Layout(causal=True), rows, **few)
        firsts.append((weights[..., 0].sum() / weights.sum()).item())
        if isinstance(attention.projection, Gates):
            opened.append(attention.projection.opening(x).mean().item())
    gates = mean(opened) if opened else None
    return {"first": mean(firsts), "gap": gap(model, ids[:64]), "right": right, "opened": gates}


def attended(model: LM, ids: Tensor) -> list[tuple[Any, Tensor]]:
    """For each layer its attention and the hidden states that it reads."""
    calls = []
    hooks = [
        layer.attention.register_forward_pre_hook(lambda module, given: calls.append((module, given[0])))
        for layer in model.layers
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    return calls


def gap(model: LM, ids: Tensor) -> float:
    """How far repeating the last token moves the last state, over its norm."""
    last: list[Tensor] = []
    hook = model.norm.register_forward_hook(lambda module, given, out: last.append(out[:, -1]))
    for text in (ids, torch.cat([ids, ids[:, -1:]], 1)):
        model(text)
    hook.remove()
    return ((last[0] - last[1]).norm(dim=-1) / last[0].norm(dim=-1)).mean().item()


def cells(layers: str, projection: str = "grouped", kv_heads: int | None = None, rate: float = RATE) -> list[Cell]:
    """A model for each seed."""
    sizes = {"layers": layers, "projection": projection, "kv_heads": kv_heads, "rate": rate}
    return [trained.cell(**sizes, seed=seed, steps=STEPS) for seed in SEEDS]


def beside(layers: str, projection: str = "grouped", kv_heads: int | None = None, rate: float = RATE) -> list[Cell]:
    """Softmax's models, and as many of others."""
    return cells(f"softmax*{len(parse_layers(layers))}", rate=rate) + cells(layers, projection, kv_heads, rate)


RATES, LONGER = (3e-3, 1e-2), 6000
"""Of learning, of which each arm takes its best, and steps after which small models differ by more than their pace: a
third of them left differential and scaled attention behind softmax by 1%, and seeds apart by 4%."""


def tuned(layers: str, projection: str = "grouped") -> list[Measured]:
    """Softmax's models and the others, fifteen times as long, each at every rate."""
    arms = ((f"softmax*{len(parse_layers(layers))}", "grouped"), (layers, projection))
    return [
        trained.cell(layers=text, projection=how, kv_heads=None, rate=rate, seed=seed, steps=LONGER)
        for text, how in arms
        for rate in RATES
        for seed in SEEDS
    ]


def tuned_shorter(layers: str, steps: int) -> list[Cell]:
    """The same after fewer steps."""
    return [trained.cell(**dict(cell.given) | {"steps": steps}) for cell in tuned(layers)]


def at_best_rate(found: Figures, figure: str) -> tuple[list[float], list[float]]:
    """A figure of softmax's models and of the others', each at the rate of its lowest mean loss."""
    half = len(found.rows) // 2
    arms = [Figures(rows) for rows in (found.rows[:half], found.rows[half:])]
    best = [min(RATES, key=lambda rate, arm=arm: arm.mean("loss", rate=rate)) for arm in arms]
    plain, other = (arm(figure, rate=rate) for arm, rate in zip(arms, best, strict=True))
    return plain, other


def tuned_loss_at_most(found: Figures, ratio: float) -> Finding:
    """At each arm's best rate the mean held-out loss is at most so many times softmax's."""
    plain, other = at_best_rate(found, "loss")
    rates = [set(values).pop() for values in at_best_rate(found, "rate")]
    share, last = mean(other) / mean(plain), found.rows[-1]
    name = last["layers"] if last["projection"] == "grouped" else last["projection"]
    ours = f"loss of {name} {interval(other)} at a rate of {rates[1]:g}"
    theirs = f"softmax {interval(plain)} at {rates[0]:g}: {share:.3f} of it, wanted at most {ratio:g}"
    return Finding.of(f"after {last['steps']:,} steps {ours}, {theirs}", mean(other) <= ratio * mean(plain))


def both(found: Figures, figure: str) -> tuple[list[float], list[float]]:
    """A figure of softmax's models and of the others'."""
    values = found(figure)
    return values[: len(SEEDS)], values[len(SEEDS) :]


def loss_at_most(found: Figures, ratio: float) -> Finding:
    """The mean held-out loss is at most so many times softmax's."""
    plain, other = both(found, "loss")
    spikes = " and ".join(interval(values, ".1f") for values in both(found, "spike"))
    share = mean(other) / mean(plain)
    last = found.rows[-1]
    name = last["layers"] if last["projection"] == "grouped" else last["projection"]
    shown = f"loss of {name} {interval(other)}, softmax {interval(plain)}: {share:.3f} of it, wanted at most {ratio:g}"
    return Finding.of(
        f"{shown}; largest gradient over the median {spikes} of softmax's", mean(other) <= ratio * mean(plain)
    )
