"""The contract of an analysis: ``run(subject, data)`` gives a frozen result that merges and has a table.

A subject shows A to probes, whatever it is: a model that is watched, or maps that are at hand.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.tile import Probe, Tile, Tokens
from regard.probes.head_statistics import Moments, RowMean

Head = tuple[int, int]
"""``(layer, head)``."""
RANKED = 32
"""Heads in a record's summary."""


@dataclass(frozen=True)
class Prompt:
    """A text for an analysis, and what is known of it.

    Args:
        ids: ``(n,)`` int64. needle: ``(start, stop)``, the slots of what is to be copied.
        answer: slot of the first token of the answer.
    """

    ids: Tensor
    needle: tuple[int, int] | None = None
    answer: int | None = None


class Subject(Protocol):
    """Something whose A can be shown to probes."""

    def show(self, ids: Tensor, probes: Sequence[Probe], keys: Tensor | None = None) -> None:
        """Feeds ``probes`` every row of every layer for the texts ``ids (b, n)``; ``keys`` False = padding."""
        ...


@dataclass(frozen=True)
class WatchedModel:
    """A Transformers model or an `LM`, watched while it reads."""

    model: Any

    @torch.no_grad()
    def show(self, ids: Tensor, probes: Sequence[Probe], keys: Tensor | None = None) -> None:
        from regard.hosts.watch import watch
        from regard.networks import LM

        with watch(self.model, probes):
            if isinstance(self.model, LM):
                self.model(ids.to(self.model.embedding.weight.device), keys)
            else:
                masked = {} if keys is None else {"attention_mask": keys.long()}
                self.model(input_ids=ids.to(self.model.device), **masked)


@dataclass(frozen=True)
class DenseMaps:
    """Maps that are at hand.

    Args:
        maps: from ``ids (b, n)`` to A of each layer, ``(b, heads, n, n)``. block: rows of a tile.
    """

    maps: Callable[[Tensor], Sequence[Tensor]]
    block: int = 64

    def show(self, ids: Tensor, probes: Sequence[Probe], keys: Tensor | None = None) -> None:
        n = ids.shape[1]
        keys = torch.ones_like(ids, dtype=torch.bool) if keys is None else keys
        for layer, weights in enumerate(self.maps(ids)):
            for rows in torch.arange(n).split(self.block):
                about = {"queries": keys[:, rows], "key_mask": keys, "tokens": Tokens(ids), "causal": True}
                tile = Tile(layer, weights[:, :, rows], rows, 0, n, **about)
                for probe in probes:
                    probe.update(tile)


def subject_of(subject: Any) -> Subject:
    """The subject itself, or the model watched."""
    return subject if hasattr(subject, "show") else WatchedModel(subject)


class Result:
    """The base of results, which are frozen dataclasses."""

    name: str

    def merge(self, other: Self) -> Self:
        """What both have seen."""
        raise NotImplementedError

    def table(self) -> list[dict[str, Any]]:
        """Plain rows, for JSON, pandas or a terminal."""
        raise NotImplementedError

    def to(self, record: Any) -> Any:
        """The record with the table beside its own summary, under ``header["analyses"]``."""
        analyses = {**record.header.get("analyses", {}), self.name: self.table()}
        return replace(record, header={**record.header, "analyses": analyses})


@dataclass(frozen=True)
class HeadScores(Result):
    """One number a head, a mean over rows or prompts, with its standard error.

    Args:
        name: of the score. moments: counts and sums by layer, ``(heads,)``.
    """

    name: str
    moments: Mapping[int, Moments]

    def merge(self, other: HeadScores) -> HeadScores:
        """The mean over the rows or prompts of both.

        Raises:
            ValueError: scores of another name.
        """
        if self.name != other.name:
            raise wrong("other", f"scores named {other.name}", f"scores named {self.name}")
        both = dict(self.moments)
        for layer, seen in other.moments.items():
            both[layer] = both[layer] + seen if layer in both else seen
        return replace(self, moments=dict(sorted(both.items())))

    @property
    def values(self) -> dict[int, Tensor]:
        """By layer ``(heads,)``; NaN where nothing counted."""
        return {layer: seen.estimate().value for layer, seen in self.moments.items()}

    def of(self, head: Head) -> float:
        """The score of one head."""
        return float(self.values[head[0]][head[1]])

    def ranked(self, least: float = -math.inf) -> list[tuple[int, int, float]]:
        """``(layer, head, score)``, best first, of scores of at least ``least``."""
        every = [(layer, h, float(x)) for layer, row in self.values.items() for h, x in enumerate(row)]
        return sorted((e for e in every if e[2] >= least), key=lambda e: -e[2])

    def table(self) -> list[dict[str, Any]]:
        found = {layer: seen.estimate() for layer, seen in self.moments.items()}
        return [
            {"layer": layer, "head": h, self.name: float(x), "error": float(e.error[h])}
            for layer, e in found.items()
            for h, x in enumerate(e.value)
        ]


Data = TypeVar("Data")
Found = TypeVar("Found", bound=Result)


class Analysis(ABC, Generic[Data, Found]):
    """Something to be learned from a subject and data."""

    name: str

    @abstractmethod
    def run(self, subject: Any, data: Iterable[Data]) -> Found:
        """The result over all data; those of parts of the data merge to it."""


class HeadAnalysis(Analysis[Prompt, HeadScores]):
    """The base of analyses that read A: a subclass says what probe to feed, and what it has found.

    Args:
        threshold: score from which a head counts as one of these.
    """

    threshold: float

    @abstractmethod
    def probe(self, prompt: Prompt) -> Any:
        """A new probe for one prompt."""

    def found(self, probe: Any) -> Mapping[int, Moments]:
        """Counts and sums by layer, ``(heads,)``; those of a `RowMean` if not said otherwise."""
        assert isinstance(probe, RowMean)
        return probe.moments

    def run(self, subject: Any, data: Iterable[Prompt]) -> HeadScores:
        return run_together([self], subject, data)[self.name]


def run_together(analyses: Sequence[HeadAnalysis], subject: Any, data: Iterable[Prompt]) -> dict[str, HeadScores]:
    """Several analyses of the same prompts in one pass each, by their names.

    Raises:
        ValueError: no prompts.
    """
    source, scores = subject_of(subject), dict[str, HeadScores]()
    for prompt in data:
        probes = [analysis.probe(prompt) for analysis in analyses]
        source.show(prompt.ids[None], probes)
        for analysis, probe in zip(analyses, probes, strict=True):
            seen = HeadScores(analysis.name, analysis.found(probe))
            scores[analysis.name] = scores[analysis.name].merge(seen) if analysis.name in scores else seen
    if not scores:
        raise wrong("data", "no prompts", "at least one")
    return scores


def sample_moments(values: Mapping[int, Tensor]) -> dict[int, Moments]:
    """Moments of values ``(sequences, heads)``, a sample of all sequences there could be."""
    found = {}
    for layer, rows in values.items():
        count = torch.tensor(float(len(rows)), dtype=torch.float64)
        rows = rows.double()
        found[layer] = Moments(count, torch.full_like(count, math.inf), rows.sum(0), rows.square().sum(0))
    return found
