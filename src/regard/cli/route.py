"""`regard route-report`: can a model's attention be routed?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def route_report(
    model: Annotated[str, typer.Argument(help="tiny, smollm2, a folder, or an id of a model hub")] = "tiny",
    file: Annotated[Path | None, typer.Argument(help="the text to read; the sample if left out")] = None,
    score: Annotated[str, typer.Option(help="middle, mean, bound, first")] = "middle",
    block: Annotated[int, typer.Option(min=1, help="keys in a block")] = 8,
    budget: Annotated[int, typer.Option(min=3, help="blocks for each query, three of them forced")] = 32,
    length: Annotated[int, typer.Option(min=2, help="tokens of the text to read")] = 2048,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Show what share of each head's attention a router's blocks hold, beside the best and random blocks."""
    from rich.console import Console
    from rich.table import Table
    from transformers.utils import logging

    from regard.cli.progress import Steps
    from regard.compare.route_report import route_report as measure
    from regard.hosts import small
    from regard.hosts.load import load

    logging.set_verbosity_error()
    text = (file or small.SAMPLE).read_text(encoding="utf-8")
    network, tokenizer = load(model)
    with Steps() as steps:
        rows, density = measure(network, tokenizer, text, score, block, budget, length, progress=steps)
    if as_json:
        typer.echo(json.dumps({"density": density, "heads": [asdict(row) for row in rows]}, indent=2))
        return
    title = f"{score}, {budget} blocks of {block} in {model}: {density:.0%} of the visible keys"
    table = Table("layer", "router", "best", "random", "weakest head", title=title)
    layers = [[row for row in rows if row.layer == layer] for layer in sorted({row.layer for row in rows})]
    for name, of in [*((str(own[0].layer), own) for own in layers), ("all", rows)]:
        weakest = min(of, key=lambda row: row.router)
        told = f"{weakest.layer}.{weakest.head}: {weakest.router:.1%} of {weakest.oracle:.1%}"
        means = (sum(getattr(row, what) for row in of) / len(of) for what in ("router", "oracle", "random"))
        table.add_row(name, *(f"{mean:.1%}" for mean in means), told)
    Console(highlight=False).print(table)
