"""SmolLM2 tuned with and without the decorrelation of sinks, on texts with repeats and punctuation."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Generator, Tensor

from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.key_values import ids as ids_of
from regard.claims.testbeds.key_values import smollm2
from regard.edits.trace import Trace
from regard.hosts.attach import attach
from regard.probes.token_statistics import Received
from regard.train.fit import Recipe
from regard.train.objective import Batch, cross_entropy, tune
from regard.train.objectives.sink_decorrelation import SinkDecorrelation, likeness
from regard.train.tiny.corpus import read_packages

SINK = 0.3
"""The mean attention of the queries that see it, from which a token is a sink of a head."""


def stream(held_out: bool) -> Tensor:
    """Source text as tokens, with a run of line breaks or of one word every so often."""
    _, tokenizer = smollm2()
    text = "\n".join(read_packages(("json", "email", "logging"), held_out))[: 60_000 if held_out else 240_000]
    pieces = [text[start : start + 600] for start in range(0, len(text), 600)]
    return torch.tensor(ids_of(tokenizer, "".join(p + ("\n\n\n\n. . . . the the the the\n") for p in pieces)))


def texts(tokens: Tensor, count: int, length: int, generator: Generator) -> Batch:
    """Windows, each behind the tokenizer's first token."""
    _, tokenizer = smollm2()
    starts = torch.randint(len(tokens) - length, (count, 1), generator=generator)
    first = torch.full((count, 1), tokenizer.bos_token_id)
    return Batch(torch.cat([first, tokens[starts + torch.arange(length - 1)]], 1))


@torch.no_grad()
def told(model: Any, batch: Batch) -> dict[str, float]:
    """How alike states are, how many other tokens are sinks of a head, the largest activations, and the loss."""
    found: dict[str, float] = {"loss": cross_entropy(model, batch).item()}
    cosines, ratios, sinks = [], [], 0
    for row in range(len(batch.ids)):
        one = batch.rows(torch.tensor([row]))
        trace = Trace("resid")
        with attach(model, edits=[trace], probes=[received := Received()]):
            model(input_ids=one.ids, use_cache=False)
        states = [trace.get("resid", layer) for _, layer in trace.kept if layer > 0]
        cosines.append(torch.stack([likeness(state, one, 1.0) for state in states]).mean())
        sizes = torch.stack(states)[:, 0, 1:].abs()
        ratios.append((sizes.amax((1, 2)) / sizes.flatten(1).median(1).values).max())
        for column in received.result().values():
            sinks += int((column.value[..., 1:-8] > SINK).sum())
    return found | {
        "likeness": torch.stack(cosines).mean().item(),
        "sinks": sinks / len(batch.ids),
        "activations": torch.stack(ratios).mean().item(),
    }


@quick(steps=[1])
@measured(weight=(0.0, 1.0), steps=[200], length=[256], rate=[2e-5])
def tuned(weight: float, steps: int, length: int, rate: float) -> dict[str, float]:
    """SmolLM2 after so many steps of four texts, on texts that were not trained on."""
    model = deepcopy(smollm2()[0]).float()
    known = stream(False)
    batch = texts(stream(True), 8, length, Generator().manual_seed(7))
    objective = SinkDecorrelation(weight)
    tune(model, objective, lambda generator: texts(known, 4, length, generator), Recipe(steps, rate, decay=0.0))
    return told(model, batch)


def fewer_sinks(found: Figures) -> Finding:
    """Likeness is halved, no other token is a sink, activations fall to half, and the loss is within 1%."""
    plain, own = (
        {name: found.one(name, weight=w) for name in ("likeness", "sinks", "activations", "loss")} for w in (0.0, 1.0)
    )
    figure = (
        f"mean |cos| to the first token {own['likeness']:.2f} of {plain['likeness']:.2f}, other sinks a text "
        f"{own['sinks']:.1f} of {plain['sinks']:.1f}, largest activation over the median {own['activations']:.0f} of "
        f"{plain['activations']:.0f}, loss {own['loss']:.3f} of {plain['loss']:.3f}"
    )
    return Finding.of(
        figure,
        own["likeness"] <= 0.5 * plain["likeness"],
        own["sinks"] == 0 < plain["sinks"],
        own["activations"] <= 0.5 * plain["activations"],
        own["loss"] <= 1.01 * plain["loss"],
    )
