"""`regard study`: a theorem or an experiment, repeated in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.core.files import check_file, write_whole

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
    target = output or Path(f"{entry.name}.png")
    if plot:
        check_file(target, "--output")
    with Steps() as steps:
        found = measure(entry, quick, model, steps.show)
    for part in found:
        show(part)
    if plot:
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
    if part.instead:
        typer.echo(f"  of {part.instead}")
    typer.echo(f"{'holds' if part.finding.held else 'does not hold'}: {part.finding.figure}")
    if part.null is not None:
        verdict = "holds all the same, which it must not" if part.null.held else "does not hold, as it must not"
        typer.echo(f"without its cause it {verdict}: {part.null.figure}")


def draw(found: list[Studied], target: Path) -> None:
    """Each claim's figures over the first field that varies, one of numbers before others; a line for each combination
    of the rest. Figures that several claims are read from stand there once."""
    from matplotlib.figure import Figure

    panels = {
        (tuple(part.keys), measure): part for part in found for measure in part.measures if numeric(part, measure)
    }
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4.2 * across, 3.2 * down), layout="constrained")
    for place, ((_, measure), part) in enumerate(panels.items()):
        panel(figure.add_subplot(down, across, place + 1), part, measure, titled(measure, part, found))
    write_whole(target, lambda draft: figure.savefig(draft, dpi=130))


def titled(measure: str, part: Studied, found: list[Studied]) -> str:
    """A figure's name, and behind it that of its cells where they are not all the same."""
    names = {str(each.figures.rows[0].get("function", "")).rpartition(".")[2] for each in found}
    own = str(part.figures.rows[0].get("function", "")).rpartition(".")[2]
    return f"{measure} ({own})" if len(names) > 1 and own else measure


def panel(axes: Any, part: Studied, measure: str, title: str) -> None:
    """One figure of a claim, with 95% intervals over seeds. What is no number has a place of its own for each value."""
    first = across_field(part)
    values: list[Any] = list(dict.fromkeys(row[first] for row in part.figures.rows)) if first else [""]
    counted = first is not None and all(map(is_number, values))
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(first or "")
    drawn = lines(part, measure)
    for label, points in drawn.items():
        points = sorted(points) if counted else points
        x = [value if counted else values.index(value) for value, _, _ in points]
        line = "-" if counted else "none"
        y, error = ([point[place] for point in points] for place in (1, 2))
        axes.errorbar(x, y, error, marker="o", markersize=4, capsize=2, linestyle=line, label=label)
    if not counted:
        axes.set_xticks(range(len(values)), [str(value) for value in values], fontsize=7)
        axes.set_xlim(-0.5, len(values) - 0.5)
    elif min(values) > 0 and max(values) >= 8 * min(values):
        axes.set_xscale("log", base=2)
    if any(drawn):
        axes.legend(fontsize=6)


def numeric(part: Studied, measure: str) -> bool:
    """Whether a figure is a number in some row."""
    return any(isinstance(row.get(measure), int | float) for row in part.figures.rows)


def is_number(value: Any) -> bool:
    """Whether it is one, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def across_field(part: Studied) -> str | None:
    """The first field of numbers that differs between rows; without one the first field that does."""
    numbers = (name for name in part.fields if all(is_number(row[name]) for row in part.figures.rows))
    return next(numbers, next(iter(part.fields), None))


def lines(part: Studied, measure: str) -> dict[str, list[tuple[Any, float, float]]]:
    """By line, of the other fields: what stands across, means, and half of the 95% interval over seeds."""
    from statistics import mean, stdev

    from regard.claims.figures import STUDENT

    first = across_field(part)
    grouped: dict[str, dict[Any, list[float]]] = {}
    others = [name for name in part.fields if name != first]
    for row in part.figures.rows:
        if isinstance(row.get(measure), int | float):
            label = ", ".join(f"{name} {row[name]}" for name in others)
            grouped.setdefault(label, {}).setdefault(row[first] if first else "", []).append(float(row[measure]))

    def half(values: list[float]) -> float:
        return 0.0 if len(values) < 2 else STUDENT[len(values) - 2] * stdev(values) / len(values) ** 0.5

    return {label: [(x, mean(values), half(values)) for x, values in by.items()] for label, by in grouped.items()}
