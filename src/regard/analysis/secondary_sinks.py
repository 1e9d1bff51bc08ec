"""Secondary sinks: tokens after the first whose states come to point where the first one's points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

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
BRIEF = 4
"""Layers through which what is no sink may point the same way, as there."""
SHORT = 15
"""A primary sink lives through all layers but so many, or through half of them where that is more, as ours does."""
Level = tuple[int, int]


@dataclass(frozen=True, order=True)
class Sink:
    """One sink beside the first token.

    Args:
        token: its slot. start: the layer in front of which it has become one. lifetime: in front of how many it is one.
        jump: by how much the state's norm rose there. primary: it lives about as long as the first token's sink does.
    """

    token: int
    start: int
    lifetime: int
    jump: float
    primary: bool

    @property
    def kind(self) -> Literal["primary", "secondary", "noise"]:
        """What the authors call it: those of four layers or fewer are noise."""
        return "primary" if self.primary else "secondary" if self.lifetime > BRIEF else "noise"

    @property
    def level(self) -> Level:
        """``(start, lifetime)``, by which the paper sorts sinks."""
        return self.start, self.lifetime


@dataclass(frozen=True)
class Sinks(Result):
    """The sinks of some texts.

    Args:
        found: a tuple for each text.
    """

    found: tuple[tuple[Sink, ...], ...]
    name = "secondary_sinks"

    @property
    def levels(self) -> dict[Level, int]:
        """How many secondary sinks of all texts there are of each level, those of the most first."""
        found = Counter(sink.level for sinks in self.found for sink in sinks if sink.kind == "secondary")
        return dict(sorted(found.items(), key=lambda one: (-one[1], one[0])))

    def merge(self, other: Sinks) -> Sinks:
        """Those of the texts of both."""
        return replace(self, found=self.found + other.found)

    def table(self) -> list[dict[str, Any]]:
        return [
            {"text": text, **vars(sink), "kind": sink.kind} for text, sinks in enumerate(self.found) for sink in sinks
        ]


@published(
    "secondary_sinks",
    family="observe",
    kind="analysis",
    row=304,
    title="On the Existence and Behaviour of Secondary Attention Sinks",
    arxiv="2512.22213",
    year=2025,
    fidelity="authors' code",
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
def sinks_of(states: Tensor, bounded: bool = True) -> tuple[Sink, ...]:
    """The tokens after the first whose states point where the first one's points, |cos(h_j, h_0)| > 0.9.

    Only those layers count through which the first token is a sink itself: from the one with the largest rise of its
    norm to the one with the largest fall after that. A sink's start is the first of them in which it is aligned, its
    lifetime in how many of them it is.

    Args:
        states: ``(layers + 1, n, channels)``, what comes into each block, and what leaves the last. bounded: False
            counts all layers.

    Raises:
        ValueError: states of one layer or of one token.

    What networks write into sinks is rescaled by `edits.sink_steering`, told from other tokens by `sink_clusters`.

    Paper: arXiv 2512.22213, and its authors' code, which was written for models of 28 layers and more: in others a
    primary sink lives through half of the layers.
    """
    if states.dim() != 3 or min(states.shape[:2]) < 2:
        raise wrong("states", f"shape {tuple(states.shape)}", "(layers + 1, n, channels), two of each or more")
    first, last = lifetime_of(states[:, 0].norm(dim=1)) if bounded else (0, len(states))
    cosines = torch.cosine_similarity(states, states[:, :1], dim=2).abs()
    return tuple(living(states, cosines > ALIGNED, first, last))


def lifetime_of(norms: Tensor) -> tuple[int, int]:
    """``(first, end)`` of the layers through which the first token has a large norm, of ``norms (layers + 1,)``."""
    changes = norms.diff()
    first = int(changes.argmax()) + 1
    if first == len(changes):
        return first, len(norms)
    return first, int(changes[first:].argmin()) + first + 1


def living(states: Tensor, aligned: Tensor, first: int, last: int) -> Iterator[Sink]:
    """The sinks, of tokens that are aligned somewhere from ``first`` to before ``last``."""
    norms, layers = states.norm(dim=2), len(states) - 1
    for token in range(1, states.shape[1]):
        there = [layer for layer in range(first, last) if aligned[layer, token]]
        if there:
            jump = float(norms[there[0], token] - norms[max(there[0] - 1, 0), token])
            primary = len(there) >= max(layers - SHORT, layers / 2)
            yield Sink(token, there[0], len(there), jump, primary)


def planted() -> tuple[Tensor, Tensor]:
    """Token 3 turns to the first one's direction in front of layer 2 and leaves it in front of layer 7 of 12.

    The first one is large in front of layers 1 to 10.
    """
    draw = torch.Generator().manual_seed(1)
    states = torch.randn(13, 6, 41, generator=draw, dtype=torch.float64)
    states[1:11, 0] *= 20
    states[2:7, 3] = 0.7 * states[2:7, 0]
    (sink,) = sinks_of(states)
    return torch.tensor([sink.token, sink.start, sink.lifetime, sink.primary]), torch.tensor([3, 2, 5, 0])


def secondary_sinks(model: Any, ids: Tensor) -> Sinks:
    """The sinks of a model in a text ``(n,)``."""
    return Sinks((sinks_of(traced(model, ids)),))


def traced(model: Any, ids: Tensor) -> Tensor:
    """``(layers + 1, n, channels)`` float64: the states of a text ``(n,)``."""
    trace = Trace("resid")
    with attach(model, edits=[trace]), torch.no_grad():
        model(input_ids=ids[None].to(model.device), use_cache=False)
    return torch.stack([trace.get("resid", layer)[0].double() for layer in sorted(layer for _, layer in trace.kept)])


def sink_direction(model: Any, ids: Tensor, layer: int, token: int) -> Tensor:
    """``(channels,)`` float64: what a layer's network writes at a token, for `SinkSteering`."""
    return networks_outputs(model, ids, layer)[token]


def networks_outputs(model: Any, ids: Tensor, layer: int) -> Tensor:
    """``(n, channels)`` float64: what the network of a layer adds at each token of a text."""
    trace = Trace("mlp", layers=[layer])
    with attach(model, edits=[trace]), torch.no_grad():
        model(input_ids=ids[None].to(model.device), use_cache=False)
    return trace.get("mlp", layer)[0].double()


def sink_clusters(
    outputs: Tensor, sinks: Sequence[int], others: Sequence[int], steps: int = 50
) -> tuple[Tensor, float]:
    """``(cluster of each, share that is as marked)`` of two-means of what is written at sinks and at other tokens.

    The means begin at the two vectors that are farthest from each other, after the mean of all is taken off. The share
    is that of tokens whose cluster is that of most of their kind, under the better of both namings.

    Args:
        outputs: ``(n, channels)``, of a network or attention, or states. sinks, others: slots; the authors' others are
            tokens of the same words that are no sinks.

    Raises:
        ValueError: no sinks or no others.
    """
    if not sinks or not others:
        raise wrong("sinks, others", f"{len(sinks)} and {len(others)} tokens", "at least one of each")
    given = outputs[[*sinks, *others]].double()
    given = given - given.mean(0)
    far = torch.cdist(given, given)
    means = given[[int(far.argmax()) // len(given), int(far.argmax()) % len(given)]]
    named = torch.zeros(len(given), dtype=torch.long)
    for _ in range(steps):
        fresh = torch.cdist(given, means).argmin(1).cpu()
        means = torch.stack([given[fresh == k].mean(0) if bool((fresh == k).any()) else means[k] for k in (0, 1)])
        if torch.equal(fresh, named):
            break
        named = fresh
    marked = torch.tensor([1] * len(sinks) + [0] * len(others))
    right = float((named == marked).double().mean())
    return named, max(right, 1 - right)
