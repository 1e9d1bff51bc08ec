"""How alike language models are that were trained from other seeds on the same text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from regard.analysis.similarity import cka, map_similarity, max_correlation
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds import source
from regard.networks.lm import LM, Config
from regard.train.fit import Recipe, fit

DEPTH, WIDTH = 3, 64


@cache
def states(seed: int, steps: int) -> list[Tensor]:
    """``(tokens, channels)`` after each block, of held-out text."""
    model = LM(Config(source.VOCABULARY, WIDTH, f"softmax*{DEPTH}", heads=4), seed)
    if steps:
        source.trained(model, seed, steps)
    return of_layers(model)


@measured(pair=(0, 1), steps=[300])
def seeds(pair: int, steps: int) -> dict[str, float]:
    """Layers of two trained models: CKA, the largest correlations of their neurons; CKA with an untrained model."""
    one, other, raw = states(2 * pair, steps), states(2 * pair + 1, steps), states(2 * pair + 1, 0)

    def over(measure: Callable[[Tensor, Tensor], Tensor], them: list[Tensor]) -> list[float]:
        return [float(measure(x, y)) for x, y in zip(one, them, strict=True)]

    layers, neurons = over(cka, other), over(max_correlation, other)
    return {"least": min(layers), "neurons": max(neurons), "untrained": max(over(cka, raw))}


def subspaces_not_neurons(found: Figures) -> Finding:
    """CKA of every layer 0.8 or more, and neurons at least 0.2 lower."""
    least, neurons, raw = found("least"), found("neurons"), found("untrained")
    figure = f"CKA of layers at least {listed(least, '.2f')}, neurons at most {listed(neurons, '.2f')}"
    lower = all(a - b >= 0.2 for a, b in zip(least, neurons, strict=True))
    return Finding.of(f"{figure}; CKA with an untrained model at most {max(raw):.2f}", min(least) >= 0.8, lower)


@measured(seed=range(2), steps=[300])
def tuned(seed: int, steps: int) -> dict[str, float]:
    """CKA and likeness of looks of each layer with itself, after a third as many more steps on other packages."""
    model = source.trained(LM(Config(source.VOCABULARY, WIDTH, f"softmax*{DEPTH}", heads=4), seed), seed, steps)
    before = (of_layers(model), of_maps(model))
    codes = source.characters(False, source.NAMES)

    def loss(ready: Any, generator: torch.Generator) -> Tensor:
        return ready.loss(source.windows(codes, 16, 64, generator))

    fit(model, loss, Recipe(max(1, steps // 3), seed=100 + seed))
    pairs = [zip(*both, strict=True) for both in zip(before, (of_layers(model), of_maps(model)), strict=True)]
    layers, looks = [float(cka(x, y)) for x, y in pairs[0]], [float(map_similarity(x, y)) for x, y in pairs[1]]
    return {f"layer {at}": x for at, x in enumerate(layers)} | {f"looks {at}": x for at, x in enumerate(looks)}


def of_layers(model: LM) -> list[Tensor]:
    """``(tokens, channels)`` after each block, of held-out text."""
    ids = source.windows(source.characters(True), 12, 64, torch.Generator().manual_seed(7))
    kept: list[Tensor] = []

    def keep(module: Any, given: Any, out: Any) -> None:
        kept.append(out[0] if isinstance(out, tuple) else out)

    hooks = [block.register_forward_hook(keep) for block in model.blocks]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return [of.flatten(0, 1) for of in kept]


@torch.no_grad()
def of_maps(model: LM) -> list[Tensor]:
    """``(heads, n, n)`` of each layer, of a held-out text."""
    ids = source.windows(source.characters(True), 1, 64, torch.Generator().manual_seed(7))
    return [maps[0] for maps in model.intermediates(ids).values()]


def upper_layers_move(found: Figures) -> Finding:
    """CKA of 0.7 or more everywhere, and less at the top than at the bottom in every seed."""
    layers = [found(f"layer {at}") for at in range(DEPTH)]
    looks = [found(f"looks {at}") for at in range(DEPTH)]
    figure = f"CKA with the model before, from the bottom {'; '.join(listed(row, '.2f') for row in layers)}"
    figure = f"{figure}; likeness of heads {'; '.join(listed(row, '.2f') for row in looks)}"
    less = [top < bottom for bottom, top in zip(layers[0], layers[-1], strict=True)]
    return Finding.of(figure, min(map(min, layers)) >= 0.7, all(less))


@measured(pair=(0, 1), steps=[300])
def looks(pair: int, steps: int) -> dict[str, float]:
    """The mean likeness of the heads of two trained models, layer by layer, and of one with an untrained model."""
    models = [LM(Config(source.VOCABULARY, WIDTH, f"softmax*{DEPTH}", heads=4), 2 * pair + which) for which in (0, 1)]
    raw = of_maps(models[1])
    one, other = (of_maps(source.trained(model, 2 * pair + which, steps)) for which, model in enumerate(models))
    both = {"trained": other, "untrained": raw}
    return {
        name: sum(float(map_similarity(x, y)) for x, y in zip(one, them, strict=True)) / DEPTH
        for name, them in both.items()
    }


def trained_heads_look_alike(found: Figures) -> Finding:
    """In every pair, by 0.1 or more."""
    trained, raw = found("trained"), found("untrained")
    figure = f"likeness of heads of two seeds {listed(trained, '.2f')}, with an untrained model {listed(raw, '.2f')}"
    return Finding.of(figure, all(a - b >= 0.1 for a, b in zip(trained, raw, strict=True)))
