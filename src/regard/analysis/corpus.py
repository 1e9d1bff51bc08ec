"""Analyses over many texts: statistics that merge, kept text by text, so that a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from regard._version import __version__
from regard.analysis.base import HeadAnalysis, HeadScores, Prompt, run_together, subject_of
from regard.analysis.sweep import digest, fingerprint
from regard.core.errors import wrong
from regard.experiments.cell import Cell, Report, Scalar
from regard.experiments.run import run as run_cells
from regard.experiments.store import Store
from regard.probes.head_statistics import Moments

PARTS = ("count", "population", "total", "squares")


@dataclass(frozen=True)
class PromptCell(Cell):
    """What analyses find in one text, by what it depends on.

    Args:
        analyses: digest of the analyses and of the model. prompt: digest of the text and of what is known of it.
    """

    kind = "analysis"
    analyses: str
    prompt: str
    work: Callable[[], Mapping[str, HeadScores]] | None = field(default=None, compare=False, repr=False)

    @property
    def fields(self) -> dict[str, Scalar]:
        return {"analyses": self.analyses, "prompt": self.prompt}

    def run(self, report: Report = lambda what: None) -> Mapping[str, Scalar]:
        assert self.work is not None
        return {"scores": json.dumps({name: packed(found) for name, found in self.work().items()})}


def over(
    analyses: Sequence[HeadAnalysis],
    subject: Any,
    data: Iterable[Prompt],
    store: str | Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, HeadScores]:
    """Several analyses over many texts, in one pass each, as `base.run_together`; memory is that of one text.

    Args:
        subject: a Transformers model; with no ``store`` anything that `base.subject_of` takes. store: a folder that
            keeps what is found in each text, so that a run that was stopped, or more texts, go on from there.
        progress: told after each text how many are done.

    Raises:
        ValueError: no texts. TypeError: a store for a subject whose weights cannot be told from others'.
    """
    found, about = dict[str, HeadScores](), None if store is None else settings(analyses, subject)
    kept = None if store is None else Store(store)
    for done, prompt in enumerate(data, start=1):
        if kept is None or about is None:
            one = run_together(analyses, subject, [prompt])
        else:
            one = recalled(kept, about, analyses, subject, prompt)
        found = {name: found[name].merge(seen) if name in found else seen for name, seen in one.items()}
        progress(done)
    if not found:
        raise wrong("data", "no prompts", "at least one")
    return found


def settings(analyses: Sequence[HeadAnalysis], subject: Any) -> str:
    """A digest of all that results depend on beside the text."""
    if hasattr(subject_of(subject), "maps") or not hasattr(subject, "parameters"):
        raise wrong("store", f"one for a {type(subject).__name__}", "None: only a model's results are kept", TypeError)
    told = [[type(analysis).__name__, analysis.name, vars(analysis)] for analysis in analyses]
    return digest(json.dumps([told, fingerprint(subject), __version__], default=str))


def recalled(
    kept: Store, about: str, analyses: Sequence[HeadAnalysis], subject: Any, prompt: Prompt
) -> dict[str, HeadScores]:
    """What is found in one text: from the store, or now and into it."""
    text = digest(json.dumps([prompt.ids.tolist(), prompt.needle, prompt.answer]))
    cell = PromptCell(about, text, lambda: run_together(analyses, subject, [prompt]))
    (outcome,) = run_cells([cell], kept, "regard.analysis.corpus.over")
    if outcome.error is not None:
        raise wrong("data", outcome.error, "a text that can be analysed", RuntimeError)
    row = outcome.figures or next(row for row in kept.rows() if row["key"] == cell.key)
    return {name: unpacked(name, layers) for name, layers in json.loads(str(row["scores"])).items()}


def packed(found: HeadScores) -> dict[str, list[Any]]:
    """Counts and sums as JSON has them."""
    return {str(layer): [getattr(of, part).tolist() for part in PARTS] for layer, of in found.moments.items()}


def unpacked(name: str, layers: Mapping[str, list[Any]]) -> HeadScores:
    """The scores that `packed` wrote."""
    return HeadScores(
        name,
        {
            int(layer): Moments(*(torch.tensor(part, dtype=torch.float64) for part in parts))
            for layer, parts in layers.items()
        },
    )
