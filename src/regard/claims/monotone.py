"""Spoken tokens written by attention whose place never goes back, and by soft attention over everything."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.claims.cells import Cells, measured, null, quick
from regard.claims.figures import Figures, Finding, listed
from regard.networks.encoder_decoder import EncoderDecoder
from regard.networks.monotonic import LatentMonotonic
from regard.networks.monotonic_paths import LatentSegmental
from regard.tasks.frames import Frames, errors
from regard.tasks.translation import Pairs
from regard.train.fit import Recipe, fit

TASK, LENGTH, LONGER = Frames(), 8, 32
LATENT = (LatentMonotonic, LatentSegmental)
LINEAR, PLACES = 0.2, 0.1
"""The share of the steps that are trained along straight lines, before alignments are the model's own, and the weight
of places in the loss, as in the authors' code."""


def straight(pairs: Pairs) -> Tensor:
    """Places that go evenly to the last key, each at least one farther, ``(b, n)``."""
    last, count = (pairs.lengths - 1)[:, None], pairs.real.sum(1, keepdim=True)
    pace = (last / count).clamp(min=1.0)
    return torch.minimum(((torch.arange(pairs.target.shape[1]) + 1) * pace).round().long(), last)


def made(reads: str, seed: int) -> Any:
    """A model that reads so."""
    if reads in ("soft", "nothing"):
        reader = None if reads == "nothing" else "composed(score=additive)"
        return EncoderDecoder(TASK.source, TASK.target, 64, reader, seed=seed)
    if reads == "segment":
        return LatentSegmental(TASK.source, TASK.target, 64, seed=seed)
    return LatentMonotonic(TASK.source, TASK.target, 64, reads, seed=seed)  # pyright: ignore[reportArgumentType]


@quick(seed=[0], steps=[10])
@null(reads=["nothing"])
@measured(reads=("soft", "hard", "window"), seed=range(3), steps=[1000])
def written(reads: str, seed: int, steps: int) -> dict[str, float]:
    """Errors a token, of sequences as long as those that were learned from and four times as long; and how many of
    the best places lie before the one before. Null: nothing is read but the end of the source."""
    model, done = made(reads, seed), [0]
    latent = isinstance(model, LATENT)

    def loss(model: Any, drawn: Generator) -> Tensor:
        pairs = TASK.batch(32, drawn, 4, LENGTH)
        done[0] += 1
        if not latent:
            logits = model(pairs.source, pairs.target, pairs.lengths)
            return F.cross_entropy(logits[pairs.real], pairs.target[pairs.real])
        own = done[0] > LINEAR * steps
        path = model.align(pairs.source, pairs.target, pairs.lengths) if own else straight(pairs)
        return model.loss(pairs.source, pairs.target, pairs.real, pairs.lengths, path, PLACES)

    fit(model, loss, Recipe(steps, 5e-3, seed=seed, decay=0.0))
    found: dict[str, float] = {}
    for name, length, count in (("short", LENGTH, 100), ("long", LONGER, 24)):
        pairs = TASK.batch(count, Generator().manual_seed(99), length, length)
        told = model.generate(pairs.source, pairs.target.shape[1] + 4, pairs.lengths)
        found[name] = errors(told, pairs.target, TASK.tokens)
        if name == "long":
            found["back"] = back(model, pairs)
    return found


def segments() -> Cells:
    """Soft attention, and segments of a decoder that is fed what it read."""
    return written.where(reads=("soft", "segment"))


def back(model: nn.Module, pairs: Pairs) -> float:
    """The share of steps whose likeliest place lies before that of the step before."""
    if isinstance(model, EncoderDecoder) and model.reader is None:
        return 1.0
    each: Any = model
    if isinstance(model, LATENT):
        place = model.align(pairs.source, pairs.target, pairs.lengths)
    else:
        place = each.alignment(pairs.source, pairs.target, pairs.lengths).argmax(-1)
    return (place.diff(dim=1) < 0)[pairs.real[:, 1:]].double().mean().item()


def arms(found: Figures, figure: str) -> dict[str, list[float]]:
    """A figure of each way to read."""
    return found.by("reads", figure)


def is_as_good(found: Figures) -> Finding:
    """On average over seeds, of the lengths that were learned from; under a third of the tokens wrong."""
    by = arms(found, "short")
    figure = "; ".join(f"{reads} {listed(values, '.1%')}" for reads, values in by.items())
    means = {reads: sum(values) / len(values) for reads, values in by.items()}
    soft = means.get("soft", 0.0)
    return Finding.of(f"errors a token: {figure}", *(mean <= soft + 0.005 for mean in means.values()),
                      max(means.values()) < 1 / 3)  # fmt: skip


def keeps_its_place(found: Figures) -> Finding:
    """On average over seeds."""
    longer, short = arms(found, "long"), arms(found, "short")
    lost = {reads: (sum(longer[reads]) - sum(short[reads])) / len(short[reads]) for reads in longer}
    figure = "; ".join(f"{reads} {value:+.1%}" for reads, value in lost.items())
    others = [value for reads, value in lost.items() if reads != "soft"]
    soft = lost.get("soft", 0.0)
    return Finding.of(f"errors on four times the length: {figure}", soft > 0.05, all(x <= soft / 5 for x in others))


def never_goes_back(found: Figures) -> Finding:
    """Not once, where soft attention does."""
    by = arms(found, "back")
    figure = "; ".join(f"{reads} {listed(values, '.1%')}" for reads, values in by.items())
    return Finding.of(f"steps that go back: {figure}",
                      all(max(values) == 0 for reads, values in by.items() if reads != "soft"))  # fmt: skip
