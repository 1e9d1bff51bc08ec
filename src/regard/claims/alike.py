"""How alike language models are that were trained from other seeds on the same text."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from regard.analysis.similarity import cka
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
    hooks = [block.register_forward_hook(lambda m, given, out: kept.append(out[0] if isinstance(out, tuple) else out))
             for block in model.blocks]  # fmt: skip
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return [of.flatten(0, 1) for of in kept]


@measured(pair=(0, 1), steps=[300])
def seeds(pair: int, steps: int) -> dict[str, float]:
    """CKA of layers of two trained models, and of one of them with an untrained one."""
    one, other, raw = states(2 * pair, steps), states(2 * pair + 1, steps), states(2 * pair + 1, 0)
    table = torch.tensor([[float(cka(x, y)) for y in other] for x in one])
    same = table.diagonal()
    return {
        "trained": float(same.mean()),
        "untrained": float(torch.stack([cka(x, y) for x, y in zip(one, raw, strict=True)]).mean()),
        "corresponding": int((table.argmax(1) == torch.arange(DEPTH)).sum()),
    }


def training_makes_alike(found: Figures) -> Finding:
    """Of every pair."""
    trained, raw = found("trained"), found("untrained")
    figure = f"CKA of trained models {listed(trained, '.2f')}, of a trained and an untrained one {listed(raw, '.2f')}"
    return Finding.of(figure, all(a > b for a, b in zip(trained, raw, strict=True)))


def layers_correspond(found: Figures) -> Finding:
    """All of them."""
    layers = found("corresponding")
    return Finding.of(f"{listed(layers, 'd')} of {DEPTH} layers are most like the same one", min(layers) == DEPTH)
