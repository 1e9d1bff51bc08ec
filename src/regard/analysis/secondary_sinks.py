"""Secondary sinks: tokens after the first whose states come to point where the first one's points."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Result
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by
from regard.edits.trace import Trace
from regard.hosts.attach import attach

ALIGNED = 0.9
"""Cosine from which a state is a sink's, as in the authors' code."""


@dataclass(frozen=True, order=True)
class Sink:
    """One sink beside the first token.

    Args:
        token: its slot. start: the layer in front of which it has become one. lifetime: layers that it stays one.
        jump: by how much the state's norm rose there. primary: it lives through half of the layers or more.
    """

    token: int
    start: int
    lifetime: int
    jump: float
    primary: bool


@dataclass(frozen=True)
class Sinks(Result):
    """The sinks of some texts.

    Args:
        found: a tuple for each text.
    """

    found: tuple[tuple[Sink, ...], ...]
    name = "secondary_sinks"

    def merge(self, other: Sinks) -> Sinks:
        """Those of the texts of both."""
        return replace(self, found=self.found + other.found)

    def table(self) -> list[dict[str, Any]]:
        return [{"text": text, **vars(sink)} for text, sinks in enumerate(self.found) for sink in sinks]


@published(
    "secondary_sinks",
    family="observe",
    kind="analysis",
    row=304,
    title="On the Existence and Behaviour of Secondary Attention Sinks",
    arxiv="2512.22213",
    year=2025,
    fidelity="hand values",
    missing="clusters of sinks by level, rescaling of the networks' outputs",
    claim=(
        Claim(
            "sinks that are planted are found, with where they start and how long they live",
            cells="frames.planted_sinks",
            holds="frames.planted_are_found",
        ),
        Claim(
            "a language model has sinks besides its first token that live shorter",
            cells="frames.sinks_of_smollm2",
            holds="frames.some_are_secondary",
        ),
    ),
)
@shown_by(lambda: [Sample("planted", sinks_of, {"known": planted})])
def sinks_of(states: Tensor) -> tuple[Sink, ...]:
    """The tokens after the first whose states point where the first one's points, |cos(h_j, h_0)| > 0.9.

    A sink's start is the layer with the largest rise of its norm among those before which it was none, its lifetime how
    many layers from there on it stays one.

    Args:
        states: ``(layers + 1, n, channels)``, what comes into each block, and what leaves the last.

    Raises:
        ValueError: states of one layer or of one token.

    Paper: arXiv 2512.22213; cosine and start as in the authors' code, whose 15 layers for a primary sink are half of
    the layers of the models it was written for, and half here.
    """
    if states.dim() != 3 or min(states.shape[:2]) < 2:
        raise wrong("states", f"shape {tuple(states.shape)}", "(layers + 1, n, channels), two of each or more")
    cosines = torch.cosine_similarity(states, states[:, :1], dim=2).abs()
    return tuple(living(states, cosines > ALIGNED))


def living(states: Tensor, aligned: Tensor) -> Iterator[Sink]:
    """The sinks, by their longest stretch of layers in which they are aligned; those that always are, are copies."""
    norms = states.norm(dim=2)
    for token in range(1, states.shape[1]):
        runs = stretches(aligned[:, token].tolist())
        runs = [(first, last) for first, last in runs if first > 0]
        if not runs:
            continue
        first, last = max(runs, key=lambda run: run[1] - run[0])
        jump = float(norms[first, token] - norms[first - 1, token])
        lifetime = last - first
        if jump > 0:
            yield Sink(token, first, lifetime, jump, 2 * lifetime >= len(states) - 1)


def stretches(flags: list[bool]) -> list[tuple[int, int]]:
    """First and end of each unbroken run of what is true."""
    edges = [False, *flags, False]
    starts = [i for i in range(len(flags)) if edges[i + 1] and not edges[i]]
    ends = [i for i in range(1, len(flags) + 1) if edges[i] and not edges[i + 1]]
    return list(zip(starts, ends, strict=True))


def planted() -> tuple[Tensor, Tensor]:
    """Token 3 turns to the first one's direction in front of layer 2 and leaves it in front of layer 5 of 8."""
    draw = torch.Generator().manual_seed(1)
    states = torch.randn(9, 6, 41, generator=draw, dtype=torch.float64)
    states[2:5, 3] = 30 * states[2:5, 0]
    (sink,) = sinks_of(states)
    return torch.tensor([sink.token, sink.start, sink.lifetime, sink.primary]), torch.tensor([3, 2, 3, 0])


def secondary_sinks(model: Any, ids: Tensor) -> Sinks:
    """The sinks of a model in a text ``(n,)``."""
    trace = Trace("resid")
    with attach(model, edits=[trace]), torch.no_grad():
        model(input_ids=ids[None].to(model.device), use_cache=False)
    layers = sorted(layer for _, layer in trace.kept)
    return Sinks((sinks_of(torch.stack([trace.get("resid", layer)[0].double() for layer in layers])),))
