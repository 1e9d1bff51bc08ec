"""`regard train`: models of any mechanisms, and the small models that ship made again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from regard.train.tiny.loop import Progress

app = typer.Typer(
    help="Train a model of any mechanisms on text or on a task, or the small model that ships.", no_args_is_help=True
)


Layers = Annotated[str, typer.Option(help="the mechanism of each layer, such as 'softmax*2, lightning*2'")]
Width = Annotated[int, typer.Option(min=1, help="of the hidden states")]
Heads = Annotated[int, typer.Option(min=1)]
Steps = Annotated[int, typer.Option(min=1, help="of the optimiser")]
Batch = Annotated[int, typer.Option(min=1, help="examples in a step")]
Length = Annotated[int | None, typer.Option(min=2, help="tokens of an example; the task's own if left out")]
Rate = Annotated[float, typer.Option(help="the highest learning rate")]
Seed = Annotated[int, typer.Option(help="of the weights and the data")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one")]


@app.command("lm")
def lm(
    folder: Annotated[Path, typer.Argument(help="to train in; a run that was stopped goes on from there")],
    layers: Layers = "softmax*4",
    width: Width = 128,
    heads: Heads = 4,
    steps: Steps = 2000,
    batch: Batch = 16,
    length: Length = 256,
    rate: Rate = 2e-3,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train a byte-level language model of any mechanisms on the standard library's source."""
    _fit("lm", folder, layers, width, heads, steps, batch, length, rate, seed, _device(device))


@app.command("task")
def task(
    name: Annotated[str, typer.Argument(help="of the task, such as recall, copy, induction, needle, listops")],
    folder: Annotated[Path, typer.Argument(help="to train in; a run that was stopped goes on from there")],
    layers: Layers = "softmax*2",
    width: Width = 64,
    heads: Heads = 2,
    steps: Steps = 2000,
    batch: Batch = 32,
    length: Length = None,
    rate: Rate = 3e-3,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train a small language model of any mechanisms on a task with known answers, and say how well it answers."""
    _fit(name, folder, layers, width, heads, steps, batch, length, rate, seed, _device(device))


def _fit(
    name: str,
    folder: Path,
    layers: str,
    width: int,
    heads: int,
    steps: int,
    batch: int,
    length: int | None,
    rate: float,
    seed: int,
    device: str,
) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from regard.compare.task_settings import task_setting
    from regard.core.errors import wrong
    from regard.networks import Config
    from regard.train.fit import Recipe
    from regard.train.lm import accuracy_of, train_lm

    given = task_setting(name)
    if given.pattern != "causal self":
        raise wrong("name", repr(name), "a task of causal self-attention, which a language model has")
    config, recipe = Config(given.vocabulary, width, layers, heads), Recipe(steps, rate, seed=seed)
    size = length or given.length
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Bar(*columns) as bar:
        shown = bar.add_task(name, total=steps)

        def report(step: int, loss: float) -> None:
            bar.update(shown, completed=step, description=f"{name}: loss {loss:.3f}")

        model = train_lm(config, given.task, size, batch, recipe, folder, device, report)
    right, nats = accuracy_of(model, given.tested, size, 256)
    typer.echo(f"{right:.1%} right on held-out examples (chance {given.chance:.1%}), {nats:.3f} nats an answer")
    typer.echo(f"wrote {folder}; load it with regard.networks.LM.from_pretrained({str(folder)!r})")


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

    from regard.train.tiny.loop import Budget
    from regard.train.tiny.make import train_tiny

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
    from regard.train.tiny.card import write_card
    from regard.train.tiny.evaluate import evaluate

    with Console(stderr=True).status("loading") as status:
        figures = evaluate(folder or small.path("tiny"), device=device, report=status.update)
    card = write_card(folder or small.path("tiny"), figures)
    for name, text in figures.text.items():
        typer.echo(f"{name}: {text.model:.3f} bits per byte, 5-gram {text.baseline:.3f}")
    typer.echo(f"wrote {card}")
