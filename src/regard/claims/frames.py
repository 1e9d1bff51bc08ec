"""Reference frames and sinks: graphs and states with known answers, and those of SmolLM2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.analysis.flow import WatchedMaps
from regard.analysis.retrieval_heads import manual
from regard.analysis.secondary_sinks import sinks_of, traced
from regard.analysis.sink_geometry import Frame, Geometry, geometry
from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds import backcopy
from regard.claims.testbeds.key_values import smollm2
from regard.networks.lm import LM
from regard.train.fit import Step, fit

KINDS: tuple[Frame, ...] = ("centralised", "distributed", "bidirectional")
TOKENS, DRAWN = 97, 30


def drawn(kind: Frame, seed: int) -> Tensor:
    """A soft map with its mass on hubs: one anywhere, three inside, or one at either end."""
    draw = torch.Generator().manual_seed(seed)
    inside = (torch.randperm(TOKENS - 20, generator=draw) + 10).tolist()
    hubs = {"centralised": inside[:1], "distributed": inside[:3], "bidirectional": [0, TOKENS - 1]}[kind]
    weights = torch.rand(TOKENS, TOKENS, generator=draw).softmax(1) * 0.2
    for hub in hubs:
        weights[:, hub] += 0.8 / len(hubs)
    return weights / weights.sum(1, keepdim=True)


@measured()
def synthetic() -> dict[str, float]:
    """The share of drawn maps that are labelled as what they are, by kind."""
    return {kind: sum(geometry(drawn(kind, seed)).frame == kind for seed in range(DRAWN)) / DRAWN for kind in KINDS}


def all_are_told(found: Figures) -> Finding:
    """Every one of them."""
    shares = [found.one(kind) for kind in KINDS]
    return Finding.of(f"{listed(shares, '.0%')} of {DRAWN} maps of each kind", min(shares) == 1)


@measured()
def of_smollm2() -> dict[str, float]:
    """The share of SmolLM2's heads with each kind of frame, over two texts, and where the hubs are."""
    model, tokenizer = smollm2()
    ids = torch.tensor(tokenizer(manual()).input_ids)
    frames, first = [], []
    for start in (0, 2000):
        maps = WatchedMaps(model, ids[start : start + 128])
        for layer in range(maps.layers):
            weights, _ = maps.rows(layer, torch.arange(maps.n))
            found = [geometry(head) for head in weights]
            frames += [of.frame for of in found]
            first += [of.hubs == (0,) for of in found if of.frame == "centralised"]
    return {kind: frames.count(kind) / len(frames) for kind in KINDS} | {"first": sum(first) / max(1, len(first))}


def mostly_centralised(found: Figures) -> Finding:
    """More than half of the heads."""
    shares = {kind: found.one(kind) for kind in KINDS}
    told = ", ".join(f"{share:.0%} {kind}" for kind, share in shares.items())
    figure = f"SmolLM2's heads: {told}; of the centralised the hub is the first token in {found.one('first'):.0%}"
    return Finding.of(figure, shares["centralised"] > 0.5)


LOOKS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0)
"""Shares of the training after which frames are looked at."""


@quick(seed=[0], steps=[20])
@measured(seed=range(3), steps=[backcopy.STEPS])
def trained(seed: int, steps: int) -> dict[str, float]:
    """The mean concentration of the head of a model on Bigram-Backcopy, as training goes on, and the share of texts in
    which it is centralised at its end.

    On source the eight heads of two layers were never centralised, and their concentration fell, from 7.5% to 5.7%.
    """
    model, task = backcopy.network(seed), backcopy.task()
    held_out = backcopy.held_out(task, 8)
    at, figures = {share: round(share * steps) for share in LOOKS}, dict[str, float]()

    def look(step: int) -> None:
        found = of_heads(model, held_out)
        mean = sum(of.concentration for of in found) / len(found)
        figures.update({f"concentration {share:g}": mean for share in LOOKS if at[share] == step})
        figures["centralised"] = sum(of.frame == "centralised" for of in found) / len(found)

    def watched(step: Step) -> bool:
        if step.number in at.values():
            look(step.number)
        return False

    def loss(ready: Any, generator: torch.Generator) -> Tensor:
        return ready.loss(task.batch(generator, backcopy.BATCH, backcopy.LENGTH)[0])

    look(0)
    fit(model, loss, backcopy.recipe(steps, seed), until=watched)
    return figures


@torch.no_grad()
def of_heads(model: LM, texts: Tensor) -> list[Geometry]:
    """The geometry of every head's map of every text."""
    every = model.intermediates(texts).values()
    return [geometry(head) for maps in every for text in maps for head in text]


def early(found: Figures) -> Finding:
    """In every seed at least half of the rise from before training to its end is there after a fifth of it."""
    start, soon, end = (found(f"concentration {share:g}") for share in (0.0, 0.2, 1.0))
    shares = [(b - a) / (c - a) for a, b, c in zip(start, soon, end, strict=True)]
    figure = (
        f"the token with most mass has {listed(start, '.1%')} of it before training, {listed(soon, '.1%')} after a "
        f"fifth of the steps, {listed(end, '.1%')} at the end, where the head is "
        f"centralised in {listed(found('centralised'), '.0%')} of texts"
    )
    return Finding.of(figure, all(c > a for a, c in zip(start, end, strict=True)), min(shares) >= 0.5)


@measured(seed=range(3))
def planted_sinks(seed: int) -> dict[str, float]:
    """Of sinks planted into random states: how many are found, and nothing else, with their start and lifetime."""
    draw = torch.Generator().manual_seed(seed)
    layers, n, channels = 24, 67, 61
    states = torch.randn(layers + 1, n, channels, generator=draw).cumsum(0)
    states[1:-1, 0] *= 20  # the first token's own sink
    want = {}
    for token in (torch.randperm(n - 1, generator=draw)[:9] + 1).tolist():
        start, life = (int(torch.randint(*ends, (1,), generator=draw)) for ends in ((1, 12), (2, 12)))
        noise = (
            0.02 * torch.randn(life, channels, generator=draw) * states[start : start + life, 0].norm(dim=1)[:, None]
        )
        states[start : start + life, token] = 0.7 * states[start : start + life, 0] + noise
        want[token, start] = life
    found = {(sink.token, sink.start): sink.lifetime for sink in sinks_of(states)}
    right = sum(found.get(key) == life for key, life in want.items())
    return {"f1": 2 * right / (len(found) + len(want)), "planted": len(want)}


def planted_are_found(found: Figures) -> Finding:
    """F1 of token, start and lifetime together from 0.95 on."""
    scores = found("f1")
    return Finding.of(f"F1 {listed(scores, '.2f')}", min(scores) >= 0.95)


@measured()
def sinks_of_smollm2() -> dict[str, float]:
    """How many sinks SmolLM2 has beside the first token in texts of 256 tokens, and how long they live.

    Those while the first token is one itself, as the authors count, and those of all layers.
    """
    model, tokenizer = smollm2()
    ids, figures = torch.tensor(tokenizer(manual()).input_ids), {}
    texts = [traced(model, ids[start : start + 256]) for start in (0, 1500, 3000)]
    for kind, bounded in (("", True), ("all ", False)):
        found = [sink for states in texts for sink in sinks_of(states, bounded)]
        lives = sorted(sink.lifetime for sink in found if sink.kind == "secondary")
        figures |= {f"{kind}sinks": len(found), f"{kind}secondary": len(lives)}
        figures |= {f"{kind}median": lives[len(lives) // 2] if lives else 0}
    return figures


def some_are_secondary(found: Figures) -> Finding:
    """At least one lives through more than four layers and less than half, while the first token is a sink."""
    short, every = found.one("secondary"), found.one("all secondary")
    figure = f"SmolLM2, three texts: {short} while the first token has its norm, {every} if all layers are counted"
    return Finding.of(f"{figure}, these with a median lifetime of {found.one('all median')} of 30", short >= 1)
