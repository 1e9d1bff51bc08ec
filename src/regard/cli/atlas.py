"""`regard atlas`: what there is."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regard.core.errors import did_you_mean, wrong

if TYPE_CHECKING:
    from regard.core.atlas import Entry


def atlas(
    query: Annotated[
        list[str] | None, typer.Argument(help="a name, a pattern such as 'linear*', or words: cheap long context")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="such as mechanism, projection, network")] = None,
    family: Annotated[str | None, typer.Option(help="such as scored, sparse, linear")] = None,
    long: Annotated[bool, typer.Option("--long", help="all of an entry, not one line of it")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print all fields as JSON")] = False,
    write: Annotated[Path | None, typer.Option(help="write all of it as pages into this folder")] = None,
) -> None:
    """List the published systems that regard holds, one line each, or search them by name or by need."""
    if write is not None:
        from regard.cli import atlas_pages

        if query or kind or family or long or as_json:
            raise wrong("write", str(write), "it alone: pages have all of the atlas")
        print(f"{atlas_pages.write(write)} pages in {write}")
        return
    found = chosen(" ".join(query or []), kind, family)
    if as_json:
        from regard.core.sources import uncollected

        with uncollected():
            told = [entry.as_dict() for entry in found]
        print(json.dumps(told, indent=2, ensure_ascii=False))
    elif long:
        print("\n\n".join(described(entry) for entry in found))
    else:
        print_lines(found)


def chosen(query: str, kind: str | None, family: str | None) -> list[Entry]:
    """The entries that are meant.

    Raises:
        LookupError: none; the message names the nearest.
    """
    from regard.core.atlas import entries, search

    if not query or any(sign in query for sign in "*?["):
        found = entries(query or "*", kind=kind, family=family)
    else:
        found = entries(query, kind=kind, family=family)
        within = {entry.name for entry in entries(kind=kind, family=family)}
        found = found or [entry for entry in search(query) if entry.name in within]
    if not found:
        near = did_you_mean(query, [entry.name for entry in entries()])
        wanted = f"a name, a pattern or words of some name, title or summary; `regard atlas` lists all{near}"
        raise wrong("query", repr(query), wanted, LookupError)
    return found


def print_lines(found: list[Entry]) -> None:
    """One line an entry, cut to the width of the terminal; a log or a pipe gets whole lines."""
    about = [("name", "row", "kind", "family", "status", "what it does")]
    for entry in found:
        row = "" if entry.row is None else str(entry.row)
        about.append((entry.name, row, entry.kind, entry.family, entry.claim.status, entry.summary))
    widths = [max(map(len, column)) for column in list(zip(*about, strict=True))[:-1]]
    most = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for *words, summary in about:
        line = "  ".join([*(word.ljust(width) for word, width in zip(words, widths, strict=True)), summary])
        print(line if most is None or len(line) <= most else f"{line[: most - 1]}…")


def described(entry: Entry) -> str:
    """All of an entry for reading."""
    row = "" if entry.row is None else f", row {entry.row}"
    paper = f"{entry.title} ({entry.year}{f', arXiv {entry.arxiv}' if entry.arxiv else ''})"
    claim = entry.claim
    since = ", ".join(part for part in (claim.date, claim.stale) if part)
    lines = {
        "paper": paper,
        "does": entry.summary,
        "system": f"part; missing: {entry.missing}" if entry.missing else "complete",
        "fidelity": entry.fidelity,
        "claim": claim.text,
        "status": ": ".join(part for part in (claim.status, claim.figure) if part),
        "measured": f"{claim.command} ({since})" if since else claim.command,
        "code": entry.where,
        "also called": ", ".join(entry.aliases),
    }
    said = "\n".join(f"  {name + ':':<13}{text}" for name, text in lines.items() if text)
    return f"{entry.name}  ({entry.kind}, {entry.family}{row})\n{said}"
