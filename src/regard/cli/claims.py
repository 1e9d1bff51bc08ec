"""`regard claims`: what papers say, and what came out of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regard.core.errors import wrong

if TYPE_CHECKING:
    from regard.core.atlas import Entry

ELSEWHERE = Path("regard-claims")


def claims(
    names: Annotated[list[str] | None, typer.Argument(help="entries of the atlas to measure; without, a list")] = None,
    every: Annotated[bool, typer.Option("--all", help="measure what is not measured yet of every entry")] = False,
    again: Annotated[bool, typer.Option("--again", help="measure what is there already once more")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", help="folder of results; else the package's own, or regard-claims beside it")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="write what is known of every entry to this Markdown page")] = None,
) -> None:
    """Measure what papers say, or list what came out; a run that was stopped goes on where it was."""
    from regard.core import executed

    if names or every:
        executed.begin()  # before what is measured is imported
    from regard.core.atlas import entries, find
    from regard.core.files import write_text

    if names and every:
        raise wrong("--all", "names too", "either names or --all")
    chosen = entries() if every else [find(name) for name in dict.fromkeys(names or [])]
    failed = measured(chosen, output or usual(), again) if chosen else 0
    if page is not None:
        from regard.claims.page import markdown

        write_text(page, markdown(entries()))
    elif not chosen:
        print_lines(entries())
    raise typer.Exit(1 if failed else 0)


def usual() -> Path:
    """The package's own folder of results in a checkout, else a folder where the command was called."""
    from regard.core.results import RESULTS

    checkout = RESULTS.parents[2] / "pyproject.toml"
    return RESULTS if checkout.is_file() and os.access(RESULTS, os.W_OK) else ELSEWHERE


def measured(chosen: list[Entry], folder: Path, again: bool) -> int:
    """Measures, and prints what came out; how many cells failed."""
    import torch

    from regard.claims.book import measure
    from regard.claims.declared import cells_of
    from regard.cli.progress import Steps
    from regard.core.results import load, result_of

    torch.set_num_threads(1)
    total = len({(e.name, cell.key) for e in chosen for claim in e.claims for cell in cells_of(claim)})
    failed = fresh = 0
    with Steps() as steps:
        for done, outcome in enumerate(measure(chosen, folder, again, steps.show), 1):
            steps(outcome.cell.label, done, total)
            fresh += not outcome.reused
            if outcome.error is not None:
                failed += 1
                steps.say(f"failed: {outcome.cell.kind} {outcome.cell.label}: {outcome.error}")
    print(f"{fresh} of {total} cells measured, {total - fresh} were there already")
    for entry in chosen if len(chosen) < 10 else []:
        print(f"{entry.name}: {told(result_of(entry.name, entry.claims, load(folder / f'{entry.name}.json')))}")
    return failed


def print_lines(found: list[Entry]) -> None:
    """One line an entry, and how many are of each status."""
    from collections import Counter

    from regard.core.sources import uncollected

    width = max(len(entry.name) for entry in found)
    results = {entry.name: entry.claim for entry in found}
    with uncollected():
        for name, result in results.items():
            print(f"{name.ljust(width)}  {told(result)}")
        stale = sum(bool(result.stale) for result in results.values())
    counts = Counter(result.status for result in results.values())
    print(f"{', '.join(f'{count} {status}' for status, count in counts.items())}; {stale} stale")


def told(result) -> str:
    """What came out, in a line."""
    when = ", ".join(part for part in (result.date, result.stale) if part)
    return ": ".join(part for part in (f"{result.status} ({when})" if when else result.status, result.figure) if part)
