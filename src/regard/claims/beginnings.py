"""Language models that learn from texts of several lengths, packed in several ways: how many heads are sinks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor, nn

from regard.claims.cells import Cells, measured, quick
from regard.claims.figures import Figures, Finding, interval
from regard.claims.small_lm import attended
from regard.claims.testbeds.source import VOCABULARY, characters, windows
from regard.core.layout import Layout
from regard.networks import LM, Config
from regard.train.fit import Recipe, fit

BEGIN, TOKENS, READ, SINK, FROM = VOCABULARY, 2048, 64, 0.3, 8
"""The mark that begins texts, tokens of a batch, characters that are read, mean attention from which a head is a sink,
and the first query that counts."""
PACKED = ("begun", "bare", "between")
"""Every text begins with the mark, none has it, or it stands where one text ends and another begins, anywhere."""


def texts(packed: str, count: int, length: int, generator: Generator, held_out: bool = False) -> Tensor:
    """Windows of source ``(count, length)``, packed so."""
    ids = windows(characters(held_out), count, length, generator)
    if packed == "begun":
        ids[:, 0] = BEGIN
    if packed == "between":
        place = torch.randint(length, (count,), generator=generator)
        other = windows(characters(held_out), count, length, generator)
        ids = torch.where(torch.arange(length) > place[:, None], other, ids)
        ids[torch.arange(count), place] = BEGIN
    return ids


@torch.no_grad()
def sinks(model: LM, ids: Tensor) -> float:
    """The share of heads that give the first token more than 0.3 of their attention."""
    received = []
    for attention, x in attended(model, ids):
        q, k, _, signals = attention.inputs(x, Layout(causal=True))
        weights = attention.mechanism.weights(q, k, Layout(causal=True), **signals)
        received.append(weights[:, :, FROM:, 0].mean((0, 2)))
    return (torch.cat(received) > SINK).double().mean().item()


@torch.no_grad()
def nats(model: LM, ids: Tensor) -> float:
    """The loss on the second half of the texts, whatever they begin with."""
    logits = model(ids)[:, READ // 2 - 1 : -1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, READ // 2 :].flatten()).item()


@quick(length=[64], seed=[0], steps=[10])
@measured(length=(64, 128, 256, 512), packed=PACKED, seed=range(3), steps=[2000])
def grid(length: int, packed: str, seed: int, steps: int) -> dict[str, float]:
    """Sinks of twelve narrow layers on 64 characters, as they were trained and without the mark, and the nats a
    character that taking the mark away costs."""
    model = LM(Config(VOCABULARY + 1, 32, "softmax*12", heads=4), seed=seed)

    def loss(ready: Any, generator: Generator) -> Tensor:
        return model.loss(texts(packed, TOKENS // length, length, generator))

    fit(model, loss, Recipe(steps, seed=seed))
    bare = windows(characters(True), 64, READ, Generator().manual_seed(7))
    begun = bare.clone()
    begun[:, 0] = BEGIN
    own = bare if packed == "bare" else begun
    return {"sinks": sinks(model, own), "without": sinks(model, bare), "cost": nats(model, bare) - nats(model, own)}


def lengths() -> Cells:
    """Of texts that all begin with the mark."""
    return grid.where(packed=["begun"])


def ways() -> Cells:
    """Of texts of 256 characters."""
    return grid.where(length=[256])


def rise(found: Figures) -> Finding:
    """From the shortest to the longest on average over seeds, and never down by a fiftieth."""
    by = found.by("length", "sinks")
    means = [sum(values) / len(values) for values in by.values()]
    told = "; ".join(f"{length}: {interval(values, '.2f')}" for length, values in by.items())
    falls = any(b < a - 0.02 for a, b in pairwise(means))
    return Finding.of(f"share of heads that are sinks, by characters of a text {told}", means[-1] > means[0], not falls)


def depend_on_the_mark(found: Figures) -> Finding:
    """Where no text has the mark the first token is a sink all the same; where each has, half a nat is lost without."""
    by = {packed: (found("sinks", packed=packed), found("without", packed=packed)) for packed in PACKED}
    costs = found("cost", packed="begun")
    told = "; ".join(
        f"{name}: {interval(own, '.2f')}, without the mark {interval(without, '.2f')}"
        for name, (own, without) in by.items()
    )
    figure = f"share of sinks {told}; the mark taken from texts that all had it costs {interval(costs, '.2f')} nats"
    return Finding.of(figure, min(by["bare"][0]) > 0, sum(costs) / len(costs) >= 0.5)
