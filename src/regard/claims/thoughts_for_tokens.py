"""A model of source text whose middle layers think once for several tokens, beside the one that it was."""

from __future__ import annotations

import time

import torch
from torch import Generator

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.source import VOCABULARY, characters, held_out_loss, trained, windows
from regard.networks import LM, Config
from regard.networks.direct_multi_token import DirectMultiToken

LAYERS = 8
SPLITS = ((1, 5), (2, 4))
"""How many layers encode and think; the others decode."""
LENGTH, WRITTEN, ROUNDS = 64, 96, 5


@measured(horizon=[4], seed=range(2), steps=[400])
def converted(horizon: int, seed: int, steps: int) -> dict[str, float]:
    """Next characters told and nats each, after as many more steps, plain or in three parts; and the speeds."""
    base = LM(Config(VOCABULARY, width=64, layers=f"softmax*{LAYERS}", heads=4), seed=seed)
    trained(base, seed, steps)
    models = {str(split): DirectMultiToken.of(base, *split, horizon) for split in SPLITS} | {"plain": base}
    for model in models.values():
        trained(model, seed + 100, steps)
    found = {f"{name} right": right(model) for name, model in models.items()}
    found |= {f"{name} loss": held_out_loss(model) for name, model in models.items()}
    return found | {f"{split} speed": speed(base, models[str(split)]) for split in SPLITS}


@torch.no_grad()
def right(model: LM) -> float:
    """The share of next characters told, on files that were not trained on."""
    ids = windows(characters(True), 256, LENGTH, Generator().manual_seed(7))
    return (model(ids)[:, :-1].argmax(-1) == ids[:, 1:]).float().mean().item()


def speed(plain: LM, parts: LM) -> float:
    """How many times the plain model's characters a second: CPU time of a text each, in turn, the median."""
    prompt = windows(characters(True), 1, LENGTH, Generator().manual_seed(8))
    ratios = []
    for _ in range(ROUNDS):
        spent = []
        for model in (plain, parts):
            begun = time.process_time()
            model.generate(prompt, WRITTEN)
            spent.append(time.process_time() - begun)
        ratios.append(spent[0] / spent[1])
    return sorted(ratios)[ROUNDS // 2]


def faster(found: Figures) -> Finding:
    """With one of the splits at least 1.4 times as fast and at most 3 points fewer characters told, on average."""
    plain, told, holds = found.mean("plain right"), [], []
    for split in SPLITS:
        mine, speed = found.mean(f"{split} right"), found.mean(f"{split} speed")
        told.append(f"{split[0]} layers encode and {split[1]} think: {speed:.2f} times as fast, {mine:.1%}")
        holds.append(speed >= 1.4 and 100 * (plain - mine) <= 3)
    figure = f"{'; '.join(told)} of next characters told, {plain:.1%} of the plain model of {LAYERS} layers"
    return Finding.of(figure, any(holds))
