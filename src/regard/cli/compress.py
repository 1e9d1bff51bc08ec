"""`regard compress`: what does a model lose when its cache forgets?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.core.errors import did_you_mean, wrong

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regard.compare.cache_report import Kept

USUAL = "random,streaming,knorm,snapkv(window=16),pyramidkv(window=16),tova,h2o"


def compress(
    model: Annotated[str, typer.Option(help="smollm2, tiny, a folder, or an id of a model hub")] = "smollm2",
    policies: Annotated[str, typer.Option(help="such as 'snapkv(window=16),tova'; see `regard atlas`")] = USUAL,
    budgets: Annotated[
        str, typer.Option(help="tokens of a kv head, shares of the prompt, or bytes: 128,0.25,8MiB")
    ] = "0.125",
    task: Annotated[str, typer.Option(help="needle: a number asked for; text: how a text goes on")] = "needle",
    length: Annotated[int, typer.Option(min=64, help="tokens of a prompt")] = 1024,
    prompts: Annotated[int, typer.Option(min=1)] = 4,
    question: Annotated[
        str, typer.Option(help="whether it is read before the eviction: known, unknown or both")
    ] = "both",
    file: Annotated[Path | None, typer.Option(help="your kind of text; the language's reference if left out")] = None,
    advise: Annotated[
        str | None, typer.Option(help="so much memory for the cache, such as 8MiB: which policy to take, and why")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="a JSON file for every single row")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Measure quality, bytes and time of cache policies beside the full cache; a prompt is read once for all."""
    from rich.console import Console
    from transformers.utils import logging

    from regard.cli.progress import Steps
    from regard.compare.cache_report import SETTINGS, TASKS, advice, measured, summed
    from regard.core.spec import split_outside
    from regard.hosts.budget import Budget
    from regard.hosts.load import load
    from regard.policies.named import policy_of

    if task not in TASKS:
        raise wrong("--task", repr(task), f"one of {', '.join(TASKS)}{did_you_mean(task, TASKS)}")
    if question not in (*SETTINGS, "both"):
        raise wrong("--question", repr(question), f"one of {', '.join(SETTINGS)}, both")
    names = [name.strip() for name in split_outside(policies, ",")]
    sizes = [advise] if advise is not None else [size.strip() for size in budgets.split(",")]
    for name in names:
        policy_of(name)  # refused before a model is loaded
    memory = Budget.of(sizes[0]).bytes if advise is not None else None
    if advise is not None and memory is None:
        raise wrong("--advise", repr(advise), "bytes, such as 8MiB")
    [Budget.of(size) for size in sizes]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    network, tokenizer = load(model)
    if tokenizer is None:
        raise wrong("--model", f"{model}, which has no tokenizer", "one that has")
    text = None if file is None else file.read_text(encoding="utf-8")
    known = [SETTINGS[question]] if question in SETTINGS else list(SETTINGS.values())
    with Steps() as steps:
        ways = [(name, size) for size in sizes for name in names]
        rows = list(measured(network, TASKS[task](tokenizer, length, prompts, text=text), ways, known, steps))
    if output is not None:
        output.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    advices = {asked: str(advice(rows, asked)) for asked in known} if advise is not None else {}
    if as_json:
        said = {"knows" if asked else "knows not": told for asked, told in advices.items()}
        typer.echo(json.dumps({"rows": summed(rows), "advice": said}, indent=2))
        return
    console = Console(highlight=False)
    console.print(table_of(rows, f"{task}, {length} tokens, {prompts} prompts, {model}"))
    for told in advices.values():
        console.print(told, soft_wrap=True)


def table_of(rows: Sequence[Kept], title: str) -> Any:
    """The means as a table."""
    from rich.table import Table

    from regard.compare.cache_report import summed

    heads = ("policy", "budget", "question", "right", "nats a token", "MB", "a step against full", "evicting, ms")
    table = Table(*heads, title=title)
    for row in summed(rows):
        known = "known" if row["known"] else "unknown"
        figures = (f"{row['right']:.0%}", f"{row['nats']:.2f}", f"{row['bytes'] / 1e6:.1f}", f"{row['step']:.2f}×")
        table.add_row(row["policy"], row["budget"], known, *figures, f"{row['evict'] * 1e3:.0f}")
    return table
