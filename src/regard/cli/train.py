"""`regard train`: the small models that ship, made again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from regard.train.loop import Progress

app = typer.Typer(help="Train the small models that ship with regard, or measure them.", no_args_is_help=True)


@app.callback()
def train() -> None:
    """Keeps `tiny` a command of its own while it is the only one."""


@app.command("tiny")
def tiny(
    folder: Annotated[
        Path | None,
        typer.Option(
            help="the model's folder; by default ./regard-tiny to train in, and the shipped model to evaluate"
        ),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="minutes to train, all sittings together")] = None,
    tokens: Annotated[int | None, typer.Option(help="tokens to train on; unlike minutes, repeatable exactly")] = None,
    seed: Annotated[int, typer.Option(help="of the weights, the data and the held-out files")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one")] = "auto",
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="train nothing: measure the model and write its card")
    ] = False,
) -> None:
    """Train regard-tiny from nothing (an hour by default), or with --evaluate measure it and write its model card."""
    device = _device(device)
    if evaluate:
        _evaluate(folder, device)
    else:
        _train(folder or Path("regard-tiny"), minutes, tokens, seed, device)


def _device(name: str) -> str:
    import torch

    from regard.core.errors import wrong

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise wrong("--device", repr(name), "cpu, auto, or cuda where PyTorch finds a GPU")
    return name


def _train(folder: Path, minutes: float | None, tokens: int | None, seed: int, device: str) -> None:
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from regard.train.loop import Budget
    from regard.train.tiny import train_tiny

    budget = Budget(tokens, 60.0 if minutes is None and tokens is None else minutes)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Bar(*columns) as bar:
        task = bar.add_task("reading the standard library", total=1.0)

        def report(progress: Progress, figures: dict[str, Any]) -> None:
            what = f"{figures['stage']}: loss {figures['loss']:.3f}, right {progress.accuracy:.1%}"
            bar.update(task, completed=budget.clock(progress.tokens, progress.seconds), description=what)

        train_tiny(folder, budget, seed=seed, device=device, report=report)
    typer.echo(f"wrote {folder}; measure it with: regard train tiny --evaluate --folder {folder}")


def _evaluate(folder: Path | None, device: str) -> None:
    from rich.console import Console

    from regard.hosts import small
    from regard.train.card import write_card
    from regard.train.evaluate import evaluate

    with Console(stderr=True).status("loading") as status:
        figures = evaluate(folder or small.path("tiny"), device=device, report=status.update)
    card = write_card(folder or small.path("tiny"), figures)
    for name, text in figures.text.items():
        typer.echo(f"{name}: {text.model:.3f} bits per byte, 5-gram {text.baseline:.3f}")
    typer.echo(f"wrote {card}")
