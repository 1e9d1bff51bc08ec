"""Where the results of claims are kept: a text file for each entry, each row committed when it is measured."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from regard.claims.cells import OWN
from regard.claims.declared import cells_of, finding_of
from regard.claims.figures import Figures
from regard.core import executed, results
from regard.core.atlas import Entry, everything
from regard.core.errors import wrong
from regard.core.files import write_text
from regard.core.sources import OF, changed, subject, used
from regard.experiments.apart import apart, can_fork
from regard.experiments.cell import Cell, Scalar
from regard.experiments.run import Outcome, Show, run
from regard.experiments.store import machine


class Page:
    """The results of one entry. It is a store of rows for `experiments.run`.

    A row counts as measured where the cell is the same and so is all code that it uses. A file is written whole under
    a passing name and moved into place, so that a run that is killed loses at most the cell that it was measuring.

    Args:
        folder: of all results. entry: whose.
    """

    def __init__(self, folder: Path, entry: Entry) -> None:
        self.file, self.entry = folder / f"{entry.name}.json", entry
        self.kept = results.load(self.file)
        self.others: Sequence[Page] = ()

    def row(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's row, if it was measured with the code of today."""
        rows = (row for row in self.kept["rows"] if row["key"] == cell.key)
        return next((row for row in rows if self.is_of_today(row, cell)), None)

    def is_of_today(self, row: Mapping[str, Any], cell: Cell) -> bool:
        """Whether a row of this cell was measured with the code that it has today."""
        known = self.kept["sources"].get(row["sources"], {})
        return known.get(OF) == subject(*code_of(cell)) and not changed(known)

    def done(self, cell: Cell) -> bool:
        """Whether it is measured here, or in another entry's file, from which it is taken."""
        if self.row(cell) is not None:
            return True
        found = next(((row, page) for page in self.others if (row := page.row(cell)) is not None), None)
        if found is not None:
            row, page = found
            self.keep(row, page.kept["sources"][row["sources"]])
        return found is not None

    def add(self, cell: Cell, figures: Mapping[str, Scalar], command: str) -> None:
        """Keeps the row of a cell that has been measured.

        Raises:
            ValueError: a figure is called as something that every row says.
        """
        for name in OWN & figures.keys():
            raise wrong("figures", f"{name!r}", f"another name: a row has {', '.join(sorted(OWN))} of its own")
        own = machine()
        using = f"regard {own['regard']}, PyTorch {own['torch']}, Python {own['python']}"
        told = {
            "key": cell.key,
            "cell": cell.kind,
            **cell.fields,
            **{name: rounded(name, value) for name, value in figures.items()},
            "command": command,
            "date": time.strftime("%Y-%m-%d"),
            "with": f"{using}, {torch.get_num_threads()} threads; {own['machine']}",
        }
        self.keep(told, sources_of(cell, ran=True))

    def keep(self, row: Mapping[str, Any], sources: dict[str, str]) -> None:
        """Puts a row in the place of one of the same key, drops what was said of that one, and writes the file."""
        names = {name for name, known in self.kept["sources"].items() if known == sources}
        name = next(iter(names), f"code {1 + max([int(n.split()[1]) for n in self.kept['sources']], default=0)}")
        self.kept["sources"][name] = sources
        others = [other for other in self.kept["rows"] if other["key"] != row["key"]]
        self.kept["rows"] = [*others, dict(row) | {"sources": name}]
        claims = self.entry.claims
        said = [(c.cells, c.holds) for c in claims if any(cell.key == row["key"] for cell in cells_of(c))]
        self.kept["claims"] = [told for told in self.kept["claims"] if (told["cells"], told["holds"]) not in said]
        self.write()

    def close(self) -> None:
        """Says of every claim whose cells are measured whether it holds, and drops rows of cells that are gone."""
        said, wanted = {(told["cells"], told["holds"]): told for told in self.kept["claims"]}, {}
        for claim in self.entry.claims:
            cells = cells_of(claim)
            wanted |= {cell.key: None for cell in cells}
            rows = [self.row(cell) for cell in cells]
            measured = [row for row in rows if row is not None]
            if len(measured) == len(rows):
                found = finding_of(claim, Figures(measured))
                told = {"cells": claim.cells, "holds": claim.holds, "held": found.held, "figure": found.figure}
                told["command"] = f"regard claims {self.entry.name}"
                said[claim.cells, claim.holds] = told | {"date": max(row["date"] for row in measured)}
        names = [(claim.cells, claim.holds) for claim in self.entry.claims]
        self.kept["claims"] = [said[name] for name in names if name in said]
        rows = {row["key"]: row for row in self.kept["rows"]}
        self.kept["rows"] = [rows[key] for key in wanted if key in rows]
        named = {row["sources"] for row in self.kept["rows"]}
        self.kept["sources"] = {name: known for name, known in self.kept["sources"].items() if name in named}
        self.write()

    def write(self) -> None:
        """The file, a row on a line, so that a change of one is one line.

        Raises:
            OSError: it cannot be written; what was there before is there.
        """
        write_text(self.file, written(self.kept))
        results.read.cache_clear()


def written(kept: Mapping[str, Any]) -> str:
    """The text of a file of results."""
    parts = [f'"claims": {lines(kept["claims"])}', f'"rows": {lines(kept["rows"])}']
    rooms = [
        f"  {json.dumps(name)}: {{\n" + ",\n".join(f"   {line}" for line in by_room(known)) + "\n  }"
        for name, known in kept["sources"].items()
    ]
    parts.append('"sources": {' + ("\n" + ",\n".join(rooms) + "\n " if rooms else "") + "}")
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def lines(things: Sequence[Mapping[str, Any]]) -> str:
    """A JSON list with a thing on each line."""
    inner = ",\n".join(f"  {json.dumps(thing, ensure_ascii=False)}" for thing in things)
    return f"[\n{inner}\n ]" if things else "[]"


def by_room(known: Mapping[str, str]) -> Iterator[str]:
    """The digests, those of one room of regard on one line."""
    rooms: dict[str, list[str]] = {}
    for name, digest in known.items():
        rooms.setdefault(name.partition(".")[0], []).append(f"{json.dumps(name)}: {json.dumps(digest)}")
    yield from (", ".join(part) for part in rooms.values())


def rounded(name: str, value: Scalar) -> Scalar:
    """Floats to six digits, which is more than any figure tells.

    Raises:
        ValueError: no number, of which nothing could be said, and which JSON does not have.
    """
    if isinstance(value, float) and math.isnan(value):
        raise wrong(name, "NaN", "a figure")
    return float(f"{value:.6g}") if isinstance(value, float) else value


def sources_of(cell: Cell, ran: bool = False) -> dict[str, str]:
    """The code that a cell uses.

    Args:
        ran: it has just been measured, so that code which did not run in this process is left out, where that is known.
    """
    told: dict[str, Any] = {"ran": executed.has_run, "also": executed.taken()} if ran and executed.known() else {}
    return used(*code_of(cell), **told)


def code_of(cell: Cell) -> tuple[str, str, list[str]]:
    """Module below regard, and name in it, of what measures a cell, and its texts."""
    module, name = cell.code
    return module.removeprefix("regard."), name, [value for value in cell.fields.values() if isinstance(value, str)]


def measure(
    entries: Sequence[Entry], folder: Path, again: bool = False, show: Show = lambda what: None
) -> Iterator[Outcome]:
    """Measures what is not measured yet of the claims of these entries, entry by entry; yields as cells end.

    Args:
        folder: where results are kept. again: measure all anew. show: told what is done at the moment.
    """
    pages = {entry.name: Page(folder, entry) for entry in everything().values()}
    fresh: set[str] = set()
    for entry in entries:
        page = pages.get(entry.name) or Page(folder, entry)
        page.others = [other for other in pages.values() if other is not page]
        cells = {cell.key: cell for claim in entry.claims for cell in cells_of(claim)}
        todo = [cell for key, cell in cells.items() if (again and key not in fresh) or not page.done(cell)]
        yield from (Outcome(cell, reused=True) for cell in cells.values() if cell not in todo)
        for outcome in outcomes(todo, page, show):
            fresh.add(outcome.cell.key)
            yield outcome
        page.close()


def outcomes(todo: Sequence[Cell], page: Page, show: Show) -> Iterator[Outcome]:
    """Measures cells of one page; where it is noted what runs, in a process of their own, so that no others count."""

    def work(show: Show) -> Iterator[Outcome]:
        return run(todo, page, f"regard claims {page.entry.name}", again=True, show=show)

    if not todo or executed.finder() is None or not can_fork():
        return (yield from work(show))
    yield from apart(work, show)
    page.kept = results.load(page.file)
