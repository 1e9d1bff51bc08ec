"""Gates of features along time: events that only the semantics beside the features tell apart."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import regard
from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding, listed
from regard.train.fit import Recipe, fit

STEPS, FEATURES, CLASSES, LONG = 32, 8, 4, 5


def timelines(count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Features ``(count, 8, 32)``, semantics ``(count, 4, 32)`` and which steps are of the event ``(count, 32)``.

    Two events of different classes, each in two channels of its class; the semantics know one of them.
    """
    features = 0.3 * torch.randn(count, FEATURES, STEPS, generator=generator)
    semantics = 0.1 * torch.randn(count, CLASSES, STEPS, generator=generator)
    wanted = torch.zeros(count, STEPS)
    for row in range(count):
        classes = torch.randperm(CLASSES, generator=generator)[:2].tolist()
        half = STEPS // 2
        places = [torch.randint(half - LONG, (), generator=generator).item() + half * side for side in (0, 1)]
        if torch.rand((), generator=generator) < 0.5:
            places.reverse()
        for which, (kind, place) in enumerate(zip(classes, places, strict=True)):
            steps = slice(int(place), int(place) + LONG)
            features[row, 2 * kind : 2 * kind + 2, steps] += 1
            if which == 0:
                semantics[row, kind, steps] += 1
                wanted[row, steps] = 1
    return features, semantics, wanted


class Detector(nn.Module):
    """Logits of each step from features that a gate has weighed; the head sees nothing else."""

    def __init__(self, gate: str) -> None:
        super().__init__()
        self.reads = gate == "csa"
        self.gate = None if gate == "none" else regard.gate(gate)(FEATURES + CLASSES * self.reads)
        self.head = nn.Sequential(nn.Conv1d(FEATURES, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 1, 1))

    def forward(self, features: Tensor, semantics: Tensor) -> Tensor:
        x = torch.cat([features, semantics], 1) if self.reads else features
        if self.gate is not None:
            x = self.gate(x[..., None])[..., 0]
        return self.head(x[:, :FEATURES])[:, 0]


@quick(gate=["csa"], seed=[0], steps=[2])
@measured(gate=("csa", "se(ratio=2)", "none"), seed=range(3), steps=[1500])
def events(gate: str, seed: int, steps: int) -> dict[str, float]:
    """Average precision over the steps of unseen timelines."""

    def loss(ready: Any, generator: Generator) -> Tensor:
        features, semantics, wanted = timelines(32, generator)
        return F.binary_cross_entropy_with_logits(ready(features, semantics), wanted)

    torch.manual_seed(seed)
    detector = Detector(gate)
    fit(detector, loss, Recipe(steps, seed=seed))
    features, semantics, wanted = timelines(300, torch.Generator().manual_seed(10_000 + seed))
    with torch.no_grad():
        order = detector(features, semantics).flatten().argsort(descending=True)
    right = wanted.flatten()[order].double()
    precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
    return {"precision": ((precision * right).sum() / right.sum()).item()}


def finds_the_shown(found: Figures) -> Finding:
    """By 5 points, in each run."""
    own, squeezed, none = (found("precision", gate=gate) for gate in ("csa", "se(ratio=2)", "none"))
    figure = f"{listed(own, '.1%')}, squeeze and excitation {listed(squeezed, '.1%')}, none {listed(none, '.1%')}"
    return Finding.of(figure, all(a >= max(b, c) + 0.05 for a, b, c in zip(own, squeezed, none, strict=True)))
