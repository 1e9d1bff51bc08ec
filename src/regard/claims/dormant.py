"""Sinks of a head that has something to do behind a few tokens alone: the Bigram-Backcopy task of Guo et al.

On characters of source there were no sinks: none of the eight heads of two layers after 400 steps, with softmax,
sigmoid or a learned key (`regard.claims.sink_settings` has what was tried there). Guo et al. (arXiv 2410.13835) say
where there are some. The same model on the task without triggers, and on source, stands beside;
`regard.claims.testbeds.backcopy` has the settings, and those before them.

Without the mark, so that sequences begin with their second token, nothing is a sink: later tokens give the first 0.02
after 1,200 steps; with a learned key they give the first 0.02 and the key 0.04 after 2,400 (seed 7).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from regard.analysis.base import Prompt
from regard.claims.cells import Cells, measured, quick
from regard.claims.figures import Figures, Finding, interval, listed
from regard.claims.heads import by_position
from regard.claims.small_lm import attended
from regard.claims.testbeds import backcopy, source
from regard.core.layout import Layout
from regard.networks.lm import LM
from regard.train.fit import fit

EPSILON, TEXTS = 0.3, 64
"""The mean from which a key is a head's sink, and the sequences in which sinks are counted. In the first eight of them
the mark gets two thirds of what it gets in all."""
PLAIN: dict[str, Any] = {"triggers": 3, "text": False}
"""What others differ from in one thing."""
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "key bias": {"layers": "key_bias"},
    "sigmoid": {"layers": "sigmoid"},
    "gates": {"projection": "gates(at=heads)"},
    "no triggers": {"triggers": 0},
    "source": {"text": True},
}


@quick(setting=["plain", "key bias"], seed=[0], steps=[20])
@measured(setting=tuple(SETTINGS), seed=range(3), steps=[backcopy.STEPS])
def grid(setting: str, seed: int, steps: int) -> dict[str, float | None]:
    """The share of heads whose sink is the first token, of those whose sink is the learned key, and what they do.

    Settings are what takes the place of softmax, a gate behind attention, and what is trained on.
    """
    of = PLAIN | SETTINGS[setting]
    sizes = {name: value for name, value in of.items() if name not in PLAIN}
    model, task = backcopy.network(seed, **sizes), backcopy.task(of["triggers"])
    if of["text"]:
        model = backcopy.network(seed, vocabulary=source.VOCABULARY)

    def drawn(count: int, generator: Generator, held_out: bool = False) -> Tensor:
        if of["text"]:
            return source.windows(source.characters(held_out), count, backcopy.LENGTH, generator)
        return task.batch(generator, count, backcopy.LENGTH)[0]

    ids = drawn(TEXTS, Generator().manual_seed(7), True)
    before = share_of_sinks(model, ids)
    fit(model, lambda ready, generator: model.loss(drawn(backcopy.BATCH, generator)), backcopy.recipe(steps, seed))
    with torch.no_grad():
        found: dict[str, float | None] = {"before": before, "first": share_of_sinks(model, ids)}
        found |= {"learned": left_over(model, ids) if setting == "key bias" else 0.0, "loss": float(model.loss(ids))}
        triggers = torch.isin(ids, torch.tensor(task.triggers)) & (not of["text"])
        found |= received(model, ids, triggers)
        return found | {"excess": None if of["text"] else backcopy.excess(model, task, ids)}


def share_of_sinks(model: LM, ids: Tensor) -> float:
    """The share of heads whose sink is the first token."""
    return float(by_position(model, [Prompt(text) for text in ids])[:, 0].mean())


def left_over(model: LM, ids: Tensor) -> float:
    """The share of heads whose rows leave to a key of no value what makes it a sink."""
    left = torch.stack([1 - maps.sum(3).mean(2) for maps in model.intermediates(ids).values()])
    return float((left > EPSILON).double().mean())


def received(model: LM, ids: Tensor, triggers: Tensor) -> dict[str, float | None]:
    """What the first token gets from later ones, on average and in the head that gives it most when it has nothing to
    do, what such tokens give themselves, what triggers give the first and the token before; the norm of its value over
    that of others."""
    maps = torch.cat(list(model.intermediates(ids).values()), 1)[:, :, 1:]
    rest, on_first = ~triggers[:, 1:], maps[..., 0].movedim(1, 0)
    itself = maps.diagonal(1, 2, 3).movedim(1, 0)[:, rest]
    found: dict[str, float | None] = {"mass": float(on_first.mean()), "itself": float(itself.mean())}
    found |= {"dormant": float(on_first[:, rest].mean(1).max()), "active": None, "copies": None}
    if triggers.any():
        on_last = maps.diagonal(0, 2, 3).movedim(1, 0)
        found |= {"active": float(on_first[:, ~rest].mean()), "copies": float(on_last[:, ~rest].mean())}
    norms = [layer.inputs(x, Layout(causal=True))[2].norm(dim=-1) for layer, x in attended(model, ids)]
    drained = [values[..., 0].mean() / values[..., 1:].mean() for values in norms]
    return found | {"value": float(torch.stack(drained).mean())}


def of_mechanism() -> Cells:
    """Those with a learned key and those without."""
    return grid.where(setting=["plain", "key bias"])


def is_absorbed(found: Figures) -> Finding:
    """With it the first token is a sink in under 5% of the heads and the key in over 20%, as the token is without."""
    plain, first, key = found("first", setting="plain"), *(found(of, setting="key bias") for of in ("first", "learned"))
    dormant = [listed(found("dormant", setting=setting), ".0%") for setting in ("plain", "key bias")]
    figure = (
        f"the first token is a sink in {listed(plain, '.0%')} of the heads, with a learned key in "
        f"{listed(first, '.0%')}, and the key itself in {listed(key, '.0%')}; tokens that copy nothing give the first "
        f"{dormant[0]}, with the key {dormant[1]}"
    )
    return Finding.of(figure, min(plain) > 0.2, max(first) < 0.05, min(key) > 0.2)


def emergence() -> Cells:
    """By how scores become weights; beside it the same model on bigrams alone, and on source."""
    return grid.where(setting=["plain", "sigmoid", "no triggers", "source"])


def emerges_with_softmax(found: Figures) -> Finding:
    """From none to over 20% of the heads with softmax, under 1% with sigmoid."""
    before, after, other = found("before"), found("first", setting="plain"), found("first", setting="sigmoid")
    settings = emergence().values["setting"]
    mass = {setting: listed(found("dormant", setting=setting), ".0%") for setting in settings}
    value, itself = (listed(found(of, setting="plain"), ".0%") for of in ("value", "itself"))
    figure = (
        f"sinks trained with softmax {listed(after, '.0%')} of the heads, with sigmoid {listed(other, '.0%')}, "
        f"untrained at most {max(before):.0%}; tokens that copy nothing give the first {mass['plain']}, themselves "
        f"{itself}, with sigmoid the first {mass['sigmoid']}; with softmax without triggers {mass['no triggers']}, on "
        f"source {mass['source']}; its value has {value} of others' norm"
    )
    return Finding.of(figure, max(before) == 0, min(after) > 0.2, max(other) < 0.01)


def gated() -> Cells:
    """Those with a gate behind attention and those without."""
    return grid.where(setting=["plain", "gates"])


def looks_less_at_the_first(found: Figures) -> Finding:
    """Less weight on the first token than without gates, in every seed.

    On source, two layers of four heads after 400 steps, heads with gates gave it 0.9% of the weight and no gates 0.8%.
    """
    plain, other = (found("mass", setting=setting) for setting in ("plain", "gates"))
    figure = f"on the first token {interval(other, '.1%')}, without {interval(plain, '.1%')}"
    return Finding.of(figure, all(gates < none for gates, none in zip(other, plain, strict=True)))
