"""`regard results`: what has been measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def results(
    folder: Annotated[Path, typer.Argument(help="what `regard compare -o` wrote")],
    sql: Annotated[str | None, typer.Option(help="a query, such as 'select mechanism, ratio from results'")] = None,
    plot: Annotated[Path | None, typer.Option(help="write NAME-cost and NAME-quality as .png or .svg")] = None,
    page: Annotated[Path | None, typer.Option(help="write a page that works offline")] = None,
    project: Annotated[str | None, typer.Option(help="lengths to predict for, such as 1m,10m")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the rows as JSON lines")] = False,
) -> None:
    """Show, query and plot the results of comparisons."""
    from rich.console import Console

    from regard.cli.compare import report
    from regard.compare.parsing import parse_lengths
    from regard.compare.plots import plot_cost, plot_pareto
    from regard.compare.quality import pareto
    from regard.compare.summary import curves, predictions
    from regard.experiments.query import as_lines, query_table
    from regard.experiments.store import Store

    store = Store(folder)
    table, console = store.table(), Console(highlight=False)
    if sql is not None:
        found = query_table(table, sql)
        console.print("\n".join(as_lines(found)), soft_wrap=True) if as_json else console.print(rich_table(found))
        return
    rows, targets = table.to_pylist(), [] if project is None else parse_lengths(project, "--project")
    if as_json:
        console.print("\n".join(as_lines(table)), soft_wrap=True)
    elif plot is None and page is None:
        report(console, rows, targets)
    if plot is not None:
        cost, quality = (plot.with_name(f"{plot.stem}-{what}{plot.suffix}") for what in ("cost", "quality"))
        found, points = curves(rows), pareto(rows)
        if found or not points:
            plot_cost(found, predictions(found, targets), cost)
            console.print(f"wrote {cost}")
        if points:
            plot_pareto(points, quality)
            console.print(f"wrote {quality}")
    if page is not None:
        from regard.web.results import write_results_page

        write_results_page(rows, targets, page)
        console.print(f"wrote {page}")


def rich_table(found):
    """A query's answer for the terminal."""
    from rich.table import Table

    table = Table(*found.column_names, box=None, pad_edge=False, header_style="bold")
    for row in found.to_pylist():
        table.add_row(*map(brief, row.values()))
    return table


def brief(value) -> str:
    """A value for a table."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
