"""A study: the claims of an entry measured, beside the same without what they say matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from regard.claims.cells import HERE, Cells
from regard.claims.declared import cells_of, finding_of, named
from regard.claims.figures import Figures, Finding, interval
from regard.core.atlas import Claim, Entry
from regard.core.errors import wrong
from regard.experiments.cell import Cell
from regard.experiments.run import run

Show = Callable[[str], None]
SEEDS = ("seed", "function")
"""Fields over which figures are summed up, or that say nothing."""


@dataclass(frozen=True)
class Studied:
    """What came out of one claim.

    Args:
        claim: in words. figures: of its cells. finding: what is said of them. null: what is said of the figures of the
            null, which takes away what the claim says matters; None where the claim names none. instead: what differs
            from the claim's own cells, ``"steps 20 instead of 4000"``; empty where nothing does.
    """

    claim: Claim
    figures: Figures
    finding: Finding
    null: Finding | None
    instead: str = ""

    @property
    def sound(self) -> bool:
        """Whether the null, where there is one, does not hold."""
        return self.null is None or not self.null.held

    def table(self) -> list[dict[str, Any]]:
        """A row for each combination of fields but the seed, with the mean of each figure and its 95% interval."""
        rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        fields = self.fields
        for row in self.figures.rows:
            rows.setdefault(tuple(row.get(field) for field in fields), []).append(row)
        return [
            dict(zip(fields, key, strict=True))
            | {name: summed_up([row[name] for row in group]) for name in self.measures if name in group[0]}
            for key, group in rows.items()
        ]

    @property
    def fields(self) -> list[str]:
        """The fields that differ between rows, without the seed."""
        first = self.figures.rows[0]
        known = [name for name in first["fields"] if name not in SEEDS]
        return [name for name in known if len({row[name] for row in self.figures.rows}) > 1]

    @property
    def keys(self) -> list[tuple[Any, ...]]:
        """What each cell is, by its fields."""
        return [tuple(row[name] for name in row["fields"]) for row in self.figures.rows]

    @property
    def measures(self) -> list[str]:
        """The names of the figures."""
        rows = self.figures.rows
        fields = {"fields", *(name for row in rows for name in row["fields"])}
        return list(dict.fromkeys(name for row in rows for name in row if name not in fields))


def summed_up(values: Sequence[Any]) -> str:
    """Numbers as their mean and interval; others each once."""
    if all(isinstance(value, int | float) for value in values):
        return interval(values, ".4g")
    return ", ".join(dict.fromkeys(map(str, values)))


def study(entry: Entry, quick: bool = False, model: str | None = None, show: Show = lambda what: None) -> list[Studied]:
    """Measures the claims of an entry, and the null of each; what two of them have in common once. Nothing is kept.

    Args:
        entry: of any kind. quick: a look in a second, where the cells name one; nulls are always such a look where
            ``quick``, else whole. model: in the place of those that are named; claims without a model are left out.
        show: told what is done at the moment.

    Raises:
        TypeError: a model for a study without one. RuntimeError: a cell that failed.
    """
    chosen = [claim for claim in entry.claims if model is None or takes_model(claim)]
    if not chosen:
        raise wrong("--model", repr(model), f"nothing: no claim of {entry.name} is about a model", TypeError)
    known: dict[str, dict[str, Any]] = {}
    return [studied(claim, quick, model, show, known) for claim in chosen]


def takes_model(claim: Claim) -> bool:
    """Whether the claim's cells have an argument ``model`` that names one."""
    cells = cells_in(claim)
    return isinstance(cells, Cells) and "model" in cells.values


def cells_in(claim: Claim) -> Sequence[Cell]:
    """The claim's cells, as `Cells` where they are such."""
    thing, given = named("claim.cells", claim.cells)
    found = thing(**given) if callable(thing) else thing
    return found if isinstance(found, Cells) else cells_of(claim)


def studied(claim: Claim, quick: bool, model: str | None, show: Show, known: dict[str, dict[str, Any]]) -> Studied:
    """One claim, measured; ``known`` has the rows of cells that were, and gets the others."""
    cells = cells_in(claim)
    if not isinstance(cells, Cells):
        figures = Figures(rows_of(cells, show, known))
        return Studied(claim, figures, finding_of(claim, figures), None)
    whole, cells = cells, quick_of(cells) if quick else cells
    cells = cells.where(model=[model]) if model is not None else cells
    figures, nulls = Figures(rows_of(cells, show, known)), cells.nulls
    null = None if nulls is None else finding_of(claim, Figures(rows_of(nulls, show, known)))
    return Studied(claim, figures, finding_of(claim, figures), null, exchanged(whole, cells))


def quick_of(cells: Cells) -> Cells:
    """The cells of a quick look, which keeps what the claim itself has narrowed: one about a model is of that model."""
    module, _, name = cells.function.rpartition(".")
    declared = getattr(import_module(f"{HERE}{module}"), name).values
    own = {name for name, values in cells.values.items() if values != declared[name]}
    return cells.where(**{name: values for name, values in (cells.fewer or {}).items() if name not in own})


def exchanged(whole: Cells, cells: Cells) -> str:
    """What differs between a claim's cells and those that were measured."""
    told = [
        f"{name} {', '.join(map(str, cells.values[name]))} instead of {', '.join(map(str, values))}"
        for name, values in whole.values.items()
        if cells.values[name] != values
    ]
    return "; ".join(told)


def rows_of(cells: Sequence[Cell], show: Show, known: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The fields and figures of each cell, with the names of its fields."""
    for outcome in run([cell for cell in cells if cell.key not in known], None, "", show=show):
        if outcome.figures is None:
            raise RuntimeError(f"{outcome.cell.label}: {outcome.error}")
        fields = outcome.cell.fields
        known[outcome.cell.key] = {"fields": list(fields), **fields, **outcome.figures}
    return (known[cell.key] for cell in cells)
