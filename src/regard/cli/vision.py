"""`regard vision`: what does a hierarchical network cost, stage by stage?"""

from __future__ import annotations

import json
from typing import Annotated

import typer


def vision(
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="presets such as davit_tiny, or \"stages(widths=…, layers='…')\"; all presets by default"),
    ] = None,
    size: Annotated[str | None, typer.Option(help="of the image: 256, or 224x320; else the paper's")] = None,
    classes: Annotated[int, typer.Option(help="to tell apart")] = 1000,
    timed: Annotated[bool, typer.Option("--time/--no-time", help="CPU time of one image, part by part")] = True,
    against: Annotated[str | None, typer.Option(help="timm: beside its networks of the same weights")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the table of docs/vision.md")] = False,
) -> None:
    """Count a hierarchical network of images stage by stage: parameters, multiply-adds, CPU time."""
    from rich.console import Console
    from rich.table import Table

    from regard.cli.progress import Steps
    from regard.compare.vision_sizes import measure, table
    from regard.networks.vision.build import presets

    if against is not None:
        beside(against, texts or [], side(size))
        return
    names, found, wanted = texts or list(presets()), [], side(size)
    with Steps() as report:
        for number, name in enumerate(names):
            report(name, number, len(names))
            found += measure([name], wanted, classes, timed and bool(texts))
    if as_json:
        typer.echo(json.dumps([each.as_dict() for each in found], indent=2))
        return
    head, *lines = table(found, stages=bool(texts) and not markdown)
    if markdown:
        rule = "|".join("---" for _ in head)
        typer.echo("\n".join([f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)]))
        return
    shown = Table(*head, box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for line in lines:
        shown.add_row(*line)
    Console(highlight=False).print(shown)


def beside(library: str, texts: list[str], size: tuple[int, int] | None) -> None:
    """Prints each preset's parameters and time beside those of another library."""
    from regard.compare.vision_sizes import beside_timm
    from regard.core.errors import wrong

    if library != "timm":
        raise wrong("against", repr(library), "timm")
    if not texts:
        raise wrong("texts", "none", "presets that timm has, such as davit_tiny")
    for text in texts:
        found = beside_timm(text, size)
        typer.echo(
            f"{found.name}: {found.parameters:,} parameters, {found.milliseconds:.1f} ms; timm's {found.peer} "
            f"{found.peer_parameters:,}, {found.peer_milliseconds:.1f} ms: {found.ratio:.2f} of its time"
        )


def side(text: str | None) -> tuple[int, int] | None:
    """Rows and columns of ``"256"`` or ``"224x320"``."""
    from regard.core.errors import wrong

    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdigit() for part in parts):
        raise wrong("size", repr(text), "a number, or rows x columns")
    rows, columns = (int(part) for part in (parts * 2)[:2])
    return rows, columns
