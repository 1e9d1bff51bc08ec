"""`regard atlas`: what there is."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def atlas(
    query: Annotated[str, typer.Argument(help="words to search for in names, titles and summaries")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print all fields as JSON")] = False,
) -> None:
    """List the published systems that regard holds, or search them."""
    from rich.console import Console
    from rich.table import Table

    import regard
    import regard.compare.cab  # registers the benchmark
    import regard.hosts.lait
    import regard.plan.cascade
    import regard.plan.kinetics

    found = regard.search(query) if query else regard.entries()
    if as_json:
        print(json.dumps([entry.as_dict() for entry in found], indent=2, ensure_ascii=False))
        return
    if not found:
        raise LookupError(f"query: got {query!r}, want words of some name, title or summary; `regard atlas` lists all")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "row", "family", "status", "what it does", "reproduced"):
        table.add_column(column, overflow="fold")
    for entry in found:
        row = "" if entry.row is None else str(entry.row)
        table.add_row(entry.name, row, entry.family, entry.claim.status, entry.summary, entry.claim.figure)
    Console().print(table)
