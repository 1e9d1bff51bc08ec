"""Analyses over many texts: statistics that merge, kept text by text, so that a run that was stopped goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from regard._version import __version__
from regard.analysis.base import Analysis, HeadAnalysis, HeadScores, Prompt, run_together, subject_of
from regard.analysis.sweep import digest, fingerprint
from regard.core.errors import wrong
from regard.experiments.cell import Cell, Report, Scalar
from regard.experiments.run import LOCAL, Shared
from regard.experiments.run import run as run_cells
from regard.experiments.store import Store
from regard.probes.head_statistics import Moments

PARTS = ("count", "population", "total", "squares")
HeadScorer = Analysis[Prompt, HeadScores]
"""An analysis that gives each head a number."""


@dataclass(frozen=True)
class PromptCell(Cell):
    """What analyses find in one text, by what it depends on.

    Args:
        analyses: digest of the analyses and of the model. prompt: digest of the text and of what is known of it.
        text: the prompt itself.
    """

    kind = "analysis"
    analyses: str
    prompt: str
    text: Prompt | None = field(default=None, compare=False, repr=False)

    @property
    def fields(self) -> dict[str, Scalar]:
        return {"analyses": self.analyses, "prompt": self.prompt}

    def run_on(self, shared: Any, report: Report = lambda what: None) -> Mapping[str, Scalar]:
        """``shared``: the analyses and their subject."""
        assert self.text is not None
        analyses, subject = shared
        found = together(analyses, subject, self.text)
        return {"scores": json.dumps({name: packed(scores) for name, scores in found.items()})}


def over(
    analyses: Sequence[HeadScorer],
    subject: Any,
    data: Iterable[Prompt],
    store: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    workers: str = LOCAL,
) -> dict[str, HeadScores]:
    """Several analyses over many texts, those that read A in one pass of each; memory is that of one text.

    The scores of texts merge in any order, here that in which they are done: two runs agree to rounding.

    Args:
        subject: a Transformers model; with no ``store`` and in this process anything that `base.subject_of` takes.
        store: a folder that keeps what is found in each text, so that a run that was stopped, or more texts, go on
            from there. progress: told how many texts are done, those of a ``store`` at once, and of how many.
        workers: ``local`` for this process, ``ray`` or ``ray:ADDRESS`` for a Ray cluster, each of whose workers is
            sent the model once.

    Raises:
        ValueError: no texts. TypeError: a store, or workers, for a subject whose weights cannot be told from others'.
        RuntimeError: a text that cannot be analysed; all others are, and are kept.
    """
    texts = list(data)
    if not texts:
        raise wrong("data", "no prompts", "at least one")
    parts = alone(analyses, subject, texts) if store is None and workers == LOCAL else None
    if parts is None:
        parts = as_cells(analyses, subject, texts, None if store is None else Store(store), workers)
    found, done = dict[str, HeadScores](), 0
    for one, times in parts:
        for _ in range(times):
            found = {name: found[name].merge(seen) if name in found else seen for name, seen in one.items()}
        done += times
        progress(done, len(texts))
    return found


Part = tuple[dict[str, HeadScores], int]
"""What is found in a text, and how often it is among the texts."""


def alone(analyses: Sequence[HeadScorer], subject: Any, texts: Sequence[Prompt]) -> Iterable[Part]:
    """One text after another, in this process, and nothing is kept."""
    return ((together(analyses, subject, text), 1) for text in texts)


def as_cells(
    analyses: Sequence[HeadScorer], subject: Any, texts: Sequence[Prompt], kept: Store | None, workers: str
) -> Iterable[Part]:
    """Each text a cell, which is measured anywhere, and once."""
    about, cells, times = settings(analyses, subject), dict[str, PromptCell](), Counter[str]()
    for text in texts:
        cell = PromptCell(about, digest(json.dumps([text.ids.tolist(), text.needle, text.answer])), text)
        cells[cell.key] = cell
        times[cell.key] += 1
    gpus = int(any(parameter.is_cuda for parameter in subject.parameters()))
    errors, shared = list[str](), Shared((analyses, subject), gpus)
    where = {"workers": workers, "shared": shared}
    for outcome in run_cells(list(cells.values()), kept, "regard.analysis.corpus.over", **where):
        if outcome.error is not None:
            errors.append(outcome.error)
            continue
        row = outcome.figures
        if row is None:
            assert kept is not None
            row = kept.row(outcome.cell)
        scores = {name: unpacked(name, layers) for name, layers in json.loads(str(row["scores"])).items()}
        yield scores, times[outcome.cell.key]
    if errors:
        what = f"{len(errors)} of {len(cells)} that failed, such as with: {errors[0]}"
        raise wrong("data", what, "texts that can be analysed", RuntimeError)


def together(analyses: Sequence[HeadScorer], subject: Any, text: Prompt) -> dict[str, HeadScores]:
    """The scores of one text: of those that read A by one pass."""
    reading = [analysis for analysis in analyses if isinstance(analysis, HeadAnalysis)]
    found = run_together(reading, subject, [text]) if reading else {}
    for analysis in analyses:
        if analysis.name not in found:
            found[analysis.name] = analysis.run(subject, [text])
    return found


def settings(analyses: Sequence[HeadScorer], subject: Any) -> str:
    """A digest of all that results depend on beside the text."""
    if hasattr(subject_of(subject), "maps") or not hasattr(subject, "parameters"):
        wanted = "None, and workers that are local: those are for models alone"
        raise wrong("store", f"one for a {type(subject).__name__}", wanted, TypeError)
    told = [[type(analysis).__name__, analysis.name, vars(analysis)] for analysis in analyses]
    return digest(json.dumps([told, fingerprint(subject), __version__], default=str))


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
