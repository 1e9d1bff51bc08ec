"""`regard study`: a theorem or an experiment, repeated in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.core.files import write_whole

if TYPE_CHECKING:
    from regard.claims.study import Studied


def study(
    name: Annotated[str | None, typer.Argument(help="an entry of the atlas; without, a list of studies")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="a look in seconds: fewer seeds, sizes and steps")] = False,
    model: Annotated[str | None, typer.Option(help="tiny or smollm2, where the study is about a model")] = None,
    output: Annotated[Path | None, typer.Option("-o", help="where to draw; else NAME.png where it is called")] = None,
    plot: Annotated[bool, typer.Option(help="draw the figures")] = True,
) -> None:
    """Repeat a study: figures with intervals, whether its claims hold, and whether they fail without their cause."""
    import torch
    from transformers.utils import logging

    from regard.claims.study import study as measure
    from regard.cli.progress import Steps
    from regard.core.atlas import entries, find

    if name is None:
        for entry in entries(kind="study"):
            typer.echo(f"{entry.name:<26} {entry.said}")
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    entry = find(name)
    with Steps() as steps:
        found = measure(entry, quick, model, steps.show)
    for part in found:
        show(part)
    if plot:
        target = output or Path(f"{entry.name}.png")
        draw(found, target)
        typer.echo(f"\nplot    {target}")


def show(part: Studied) -> None:
    """Prints the figures of a claim and what is said of them."""
    rows = part.table()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([str(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    typer.echo(f"\n{part.claim.text}")
    for row in cells:
        typer.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    typer.echo(f"{'holds' if part.finding.held else 'does not hold'}: {part.finding.figure}")
    if part.null is not None:
        verdict = "holds all the same, which it must not" if part.null.held else "does not hold, as it must not"
        typer.echo(f"without its cause it {verdict}: {part.null.figure}")


def draw(found: list[Studied], target: Path) -> None:
    """Each claim's figures over the first field of numbers, a line for each combination of the others."""
    from matplotlib.figure import Figure

    panels = [(part, measure) for part in found for measure in part.measures if numeric(part, measure)]
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4.2 * across, 3.2 * down), layout="constrained")
    for place, (part, measure) in enumerate(panels):
        axes = figure.add_subplot(down, across, place + 1)
        axes.set_title(measure, fontsize=9)
        for label, points in lines(part, measure).items():
            x, y, error = (list(each) for each in zip(*points, strict=True))
            axes.errorbar(x, y, error, marker="o", markersize=3, capsize=2, label=label)
        first = across_field(part)
        axes.set_xlabel(first or "")
        values = [row[first] for row in part.figures.rows] if first else []
        if values and min(values) > 0 and max(values) >= 8 * min(values):
            axes.set_xscale("log", base=2)
        if any(lines(part, measure)):
            axes.legend(fontsize=6)
    write_whole(target, lambda draft: figure.savefig(draft, dpi=130))


def numeric(part: Studied, measure: str) -> bool:
    """Whether a figure is a number in some row."""
    return any(isinstance(row.get(measure), int | float) for row in part.figures.rows)


def across_field(part: Studied) -> str | None:
    """The first field of numbers that differs between rows."""
    return next((name for name in part.fields if isinstance(part.figures.rows[0][name], int | float)), None)


def lines(part: Studied, measure: str) -> dict[str, list[tuple[float, float, float]]]:
    """By line, of the other fields: places, means and half the range over seeds."""
    first, grouped = across_field(part), {}
    others = [name for name in part.fields if name != first]
    for row in part.figures.rows:
        if isinstance(row.get(measure), int | float):
            label = ", ".join(f"{name} {row[name]}" for name in others)
            grouped.setdefault(label, {}).setdefault(row[first] if first else 0, []).append(float(row[measure]))
    return {label: [point(x, values) for x, values in sorted(by.items())] for label, by in grouped.items()}


def point(x: Any, values: list[float]) -> tuple[float, float, float]:
    """A place, a mean and half of the range."""
    return float(x), sum(values) / len(values), (max(values) - min(values)) / 2
