"""`regard gates`: what does a gate cost, and what does it multiply by?"""

from __future__ import annotations

import json
from typing import Annotated

import typer

WIDEST = 200
"""Columns beyond which no line of the table goes."""


def gates(
    texts: Annotated[
        list[str] | None, typer.Argument(help="such as eca, 'triplet(kernel=3)' or 'se | spatial'; all by default")
    ] = None,
    channels: Annotated[int, typer.Option(help="of the feature map")] = 256,
    size: Annotated[int, typer.Option(help="rows and columns of the feature map")] = 56,
    batch: Annotated[int, typer.Option(help="maps in one call")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the table of docs/gates.md")] = False,
) -> None:
    """Compare gates of feature maps: parameters, multiply-adds, CPU time and the range of what they multiply by."""
    from rich.console import Console
    from rich.table import Table

    from regard.compare.feature_gates import measure, names, table

    found = measure(texts or names(), channels, size, batch)
    if as_json:
        typer.echo(json.dumps([each.as_dict() for each in found], indent=2))
        return
    head, *lines = table(found)
    if markdown:
        rule = "|".join("---" for _ in head)
        typer.echo("\n".join([f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)]))
        return
    title = f"a map of {channels} × {size} × {size}; ResNet-50: one behind each of its 16 blocks, 224 × 224"
    shown = Table(
        title=title, title_justify="left", box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False
    )
    for name in head:
        shown.add_column(name, no_wrap=True)
    for line in lines:
        shown.add_row(*line)
    console = Console(highlight=False)
    console.width = max(console.width, console.measure(shown, options=console.options.update(width=WIDEST)).maximum)
    console.print(shown)  # no number is cut: a narrow terminal wraps the lines
