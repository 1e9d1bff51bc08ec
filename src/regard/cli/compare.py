"""`regard compare`: is it really faster or better, at my length, on my machine?"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.core.errors import wrong

if TYPE_CHECKING:
    from regard.experiments.cell import Cell
    from regard.experiments.store import Store


def compare(
    mechanisms: Annotated[
        list[str] | None, typer.Argument(help="such as softmax 'window(size=64)' gla; window,size=64 too")
    ] = None,
    lengths: Annotated[str | None, typer.Option(help="such as 1k..32k or 512,4k; 1k..8k if left out")] = None,
    phase: Annotated[str, typer.Option(help="of prefill, decode, train")] = "prefill,decode,train",
    level: Annotated[str, typer.Option("--as", help="mechanism, block or lm: what is around it")] = "mechanism",
    task: Annotated[str | None, typer.Option(help="tasks to train small models on; `all` lists them")] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="cab: four patterns in two backbones; gates, necks: in a network of drawn scenes"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="models to train for each task and mechanism")] = 3,
    preset: Annotated[str, typer.Option(help="smoke or small: the size of models and of training")] = "small",
    heads: Annotated[int, typer.Option(min=1)] = 8,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="as many as heads if left out")] = None,
    head_dim: Annotated[int, typer.Option(min=1)] = 64,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64")] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="of the CPU, in each cell")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="measure peak memory too")] = True,
    project: Annotated[str | None, typer.Option(help="lengths to predict for, such as 1m,10m")] = None,
    workers: Annotated[str, typer.Option(help="local, ray or ray:ADDRESS")] = "local",
    again: Annotated[bool, typer.Option("--again", help="measure again what is there already")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder to keep results in")] = None,
) -> None:
    """Measure cost and quality of mechanisms side by side, each beside PyTorch's fused attention in the same rounds."""
    from rich.console import Console

    from regard.compare import cab
    from regard.compare.parsing import parse_lengths, parse_mechanism
    from regard.compare.quality import plan as plan_quality
    from regard.core.build import check_spec
    from regard.core.files import check_file
    from regard.core.spec import parse_layer
    from regard.experiments.store import Store

    console = Console(highlight=False)
    if output is not None:
        check_file(output / "cells" / "row", "--output", made=True)
    if suite in ("gates", "necks"):
        on_scenes(console, suite, mechanisms or [], seeds, preset, threads, output, again, workers)
        return
    if suite not in (None, "cab"):
        raise wrong("--suite", repr(suite), "cab, gates or necks")
    if not mechanisms and suite is None:
        raise wrong("mechanisms", "none", "at least one; `regard atlas` lists them")
    names = [parse_mechanism(mechanism) for mechanism in mechanisms or cab.MECHANISMS]
    for name in names:
        check_spec(parse_layer(name).mechanism)  # before anything is measured
    cells: list[Cell] = []
    if suite == "cab":
        cells += cab.cells(names, seeds, preset, threads, console.print)
    elif lengths is not None or task is None:
        setting: dict[str, Any] = {
            **{"level": level, "batch": batch, "heads": heads, "kv_heads": kv_heads or heads, "head_dim": head_dim},
            **{"dtype": dtype, "threads": threads, "device": usable(device), "memory": memory},
        }
        cells += plan_cost(console, names, phase.split(","), parse_lengths(lengths or "1k..8k"), setting)
    if task is not None:
        cells += plan_quality(names, task, seeds, preset, threads, console.print)
    store = None if output is None else Store(output)
    rows = measure(cells, store, again, workers)
    if suite == "cab":
        console.print(cab.markdown(cab.standings(rows)), soft_wrap=True)
    else:
        report(console, rows, [] if project is None else parse_lengths(project, "--project"))
    if output is not None:
        console.print(f"kept in {output}; see: regard results {output}")


def on_scenes(
    console: Any,
    suite: str,
    texts: list[str],
    seeds: int,
    preset: str,
    threads: int,
    output: Path | None,
    again: bool,
    workers: str,
) -> None:
    """Trains the networks of a suite of drawn scenes that are not there yet, and prints the table."""
    from regard.compare import scene_tables
    from regard.experiments.store import Store

    cells = scene_tables.cells(suite, texts, seeds, preset, threads)
    rows = measure(cells, None if output is None else Store(output), again, workers)
    console.print(scene_tables.markdown(rows, suite), soft_wrap=True, markup=False)
    if output is not None:
        console.print(f"kept in {output}")


def usable(device: str) -> str:
    """The device, refused if PyTorch does not find it."""
    import torch

    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise wrong("--device", repr(device), "cpu, or cuda where PyTorch finds a GPU")
    return device


def plan_cost(
    console: Any, names: list[str], phases: list[str], lengths: list[int], setting: dict[str, Any]
) -> list[Cell]:
    """The cells, without the phases that a mechanism does not have, which is said."""
    from regard.compare.cost import CostCell

    cells: list[Cell] = []
    for phase in phases:
        for name in names:
            planned = [CostCell(name, phase.strip(), length, **setting) for length in lengths]
            try:
                planned[0].subject()
            except ValueError as error:
                if not str(error).startswith("phase"):
                    raise
                console.print(f"left out: {error}")
                continue
            cells += planned
    return cells


def measure(cells: list[Cell], store: Store | None, again: bool, workers: str) -> list[dict[str, Any]]:
    """The rows of all cells, measured or kept from before, with the time left."""
    from regard.cli.progress import Steps
    from regard.experiments.run import run

    command, rows, kept = shlex.join(["regard", *sys.argv[1:]]), [], 0
    with Steps() as steps:
        for done, outcome in enumerate(run(cells, store, command, again, workers, steps.show), 1):
            steps(outcome.cell.label, done, len(cells))
            kept += outcome.reused
            if outcome.error is not None:
                steps.say(f"failed: {outcome.cell.label}: {outcome.error}")
            elif outcome.figures is not None:
                rows.append({"kind": outcome.cell.kind, **outcome.cell.fields, **outcome.figures})
    if store is None:
        return rows
    if kept:
        steps.say(f"{kept} of {len(cells)} were there already; --again measures them again")
    keys = {cell.key for cell in cells}
    return [row for row in (store.rows() if store.cells.is_dir() else []) if row["key"] in keys]


def report(console: Any, rows: list[dict[str, Any]], targets: list[int]) -> None:
    """The tables."""
    from regard.compare.quality import quality_table
    from regard.compare.summary import curves, predictions
    from regard.compare.tables import cost_tables

    found = curves(rows)
    for table in cost_tables(found, predictions(found, targets)):
        console.print(table, "")
    quality = quality_table(rows)
    if quality is not None:
        console.print(quality)
