"""`regard swap-report`: what does a model lose with another attention?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def swap_report(
    mechanism: Annotated[str, typer.Argument(help="such as 'window(size=64, sinks=4)'")],
    model: Annotated[str, typer.Option(help="tiny, a folder, or an id of a model hub")] = "tiny",
    file: Annotated[Path | None, typer.Option(help="the text whose loss is measured; the sample if left out")] = None,
    lengths: Annotated[str, typer.Option(help="of the recall contexts, in tokens")] = "512,1024",
    samples: Annotated[int, typer.Option(min=1, help="contexts for each length, 8 questions each")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Measure loss and recall of a model before and after a swap of its attention, in all layers and in each alone."""
    from rich.console import Console
    from rich.table import Table
    from transformers.utils import logging

    from regard.cli.progress import Steps
    from regard.compare.swap_report import swap_report as measure
    from regard.core.errors import wrong
    from regard.hosts import small
    from regard.hosts.load import load
    from regard.hosts.swap import instantiate

    parts = lengths.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise wrong("--lengths", repr(lengths), "numbers of tokens, such as 512,1024")
    logging.set_verbosity_error()
    instantiate(mechanism, {})  # a name that is misspelled is refused before a model is loaded
    text = (file or small.SAMPLE).read_text(encoding="utf-8")
    network, tokenizer = load(model)
    sizes = [int(part) for part in parts]
    with Steps() as steps:
        rows = list(measure(network, tokenizer, mechanism, text, sizes, samples, steps))
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table("layers", "loss", "change", *(f"recall at {size}" for size in sizes), title=f"{mechanism} in {model}")
    for row in rows:
        change = "" if row.layers == "none" else f"{row.loss - rows[0].loss:+.3f}"
        table.add_row(str(row.layers), f"{row.loss:.3f}", change, *(f"{row.recall[size]:.1%}" for size in sizes))
    Console(highlight=False).print(table)
