"""How many pairs a state of so many numbers recalls: models trained alike at equal parameters."""

from __future__ import annotations

from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, interval
from regard.core.cost import Shape
from regard.core.layout import Layout
from regard.experiments.cell import Cell
from regard.networks import BenchmarkNetwork, Config
from regard.tasks.associative import AssociativeRecall
from regard.train.fit import Recipe, fit
from regard.train.lm import accuracy_of, predicted

LENGTH, STEPS, SEEDS = 64, 1000, range(3)


@measured()
def trained(layers: str, head_dim: int, seed: int, steps: int) -> dict[str, float | int]:
    """The share of 8 pairs that two layers recall after 64 tokens, and the numbers in their state."""
    task = AssociativeRecall(8, LENGTH)
    softmax = Config(64, 64, "softmax*2", 2, head_dim=32, value_dim=32)
    plain = BenchmarkNetwork(softmax, "causal self", seed=0).parameter_count
    config = Config(64, 64, layers, 2, head_dim=head_dim, value_dim=32)
    fitted = config.fitted(plain, lambda sizes: BenchmarkNetwork(sizes, "causal self", seed=0).parameter_count)
    model = BenchmarkNetwork(fitted, "causal self", seed=seed)

    def loss(ready: nn.Module, generator: torch.Generator) -> Tensor:
        logits, targets = predicted(ready, task, LENGTH, 32, generator)
        return F.cross_entropy(logits, targets)

    fit(model, loss, Recipe(steps, 3e-3, seed=seed))
    return {"recalled": accuracy_of(model, task, LENGTH, 256)[0], "state": state_of(model)}


def state_of(model: Any) -> int:
    """Numbers that all layers' mechanisms keep after the sequence."""
    total = 0
    for layer in model.layers:
        p = layer.attention.projection
        shape = Shape(LENGTH, LENGTH, 1, p.heads, p.kv_heads, p.head_dim, p.value_dim)
        total += layer.attention.mechanism.cost(shape, Layout(causal=True)).state_bytes // 4
    return total


def cells(layers: str, head_dim: int, steps: int = STEPS) -> list[Cell]:
    return [trained.cell(layers=layers, head_dim=head_dim, seed=seed, steps=steps) for seed in SEEDS]


def delta_and_linear() -> list[Cell]:
    """The delta rule with 16 channels of keys, and linear attention, whose state also keeps a sum of keys."""
    return cells("deltanet*2", 16) + cells("linear*2", 16)


def recalls_more(found: Figures) -> Finding:
    """The delta rule recalls more from a state that is no larger."""
    delta, linear = (found("recalled", layers=f"{name}*2") for name in ("deltanet", "linear"))
    states = [found("state", layers=f"{name}*2")[0] for name in ("deltanet", "linear")]
    figure = (
        f"recall of 8 pairs {interval(delta, '.1%')} with {states[0]:,} numbers of state, "
        f"linear attention {interval(linear, '.1%')} with {states[1]:,}"
    )
    return Finding.of(figure, mean(delta) > mean(linear), states[0] <= states[1])


def based_and_linear() -> list[Cell]:
    """Based with 2 and 8 feature channels and a window of 2, and linear attention."""
    mixed = [cells("based, window(size=2)", d) for d in (2, 8)]
    return [cell for part in mixed for cell in part] + cells("linear*2", 16)


def windows() -> list[Cell]:
    """Based with 16 feature channels and windows of 2 and 16, trained three times as long."""
    return [cell for size in (2, 16) for cell in cells(f"based, window(size={size})", 16, 3 * STEPS)]


def rises_with_features(found: Figures) -> Finding:
    """More features recall more, and more than linear attention."""
    few, many = (found("recalled", layers="based, window(size=2)", head_dim=d) for d in (2, 8))
    linear = found("recalled", layers="linear*2")
    shown = f"recall of 8 pairs {interval(few, '.1%')} with 2 channels, {interval(many, '.1%')} with 8"
    return Finding.of(f"{shown}, linear attention {interval(linear, '.1%')}", mean(linear) < mean(few) < mean(many))


def rises_with_the_window(found: Figures) -> Finding:
    """A window of 16 recalls more than one of 2."""
    narrow, wide = (found("recalled", layers=f"based, window(size={size})") for size in (2, 16))
    figure = f"recall of 8 pairs {interval(narrow, '.1%')} with windows of 2, {interval(wide, '.1%')} with 16"
    return Finding.of(figure, mean(wide) > mean(narrow))
