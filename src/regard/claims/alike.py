"""How alike language models are that were trained from other seeds on the same text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from regard.analysis.similarity import cka, max_correlation
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds import source
from regard.networks.lm import LM, Config

DEPTH, WIDTH = 3, 64


@cache
def states(seed: int, steps: int) -> list[Tensor]:
    """``(tokens, channels)`` after each block, of held-out text."""
    model = LM(Config(source.VOCABULARY, WIDTH, f"softmax*{DEPTH}", heads=4), seed)
    if steps:
        source.trained(model, seed, steps)
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
