"""`regard heads`: what is each head of a model for, and what does it cause?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from regard.analysis.roles import Roles

READ = (
    "(17 from 0.1): 17 heads have a score of 0.1 or more, from which a head has the role. L18H6 is head 6 of layer 18, "
    "both from 0. -o FILE keeps the scores of all heads, and regard look --roles FILE shows them on a page"
)
LABEL = 32  # columns of a role's name
SHOWN = 8  # heads a role


def heads(
    model: Annotated[str, typer.Option(help="tiny, smollm2, a folder, or an id of a model hub")] = "tiny",
    text: Annotated[str | None, typer.Option(help="the text whose sinks and losses are measured")] = None,
    file: Annotated[str | None, typer.Option(help="a file with it; - reads standard input")] = None,
    lengths: Annotated[str, typer.Option(help="of the prompts that needles are hidden in, in tokens")] = "256,512",
    causal: Annotated[bool, typer.Option(help="take heads out, and say what the loss does")] = True,
    seed: Annotated[int, typer.Option(help="of the random tokens and needles")] = 0,
    lines: Annotated[
        bool,
        typer.Option("--lines", help="each line is a text; of a .jsonl file a JSON string, or an object with a text"),
    ] = False,
    store: Annotated[
        Path | None, typer.Option(help="a folder that keeps each prompt's scores, so that a stopped run goes on")
    ] = None,
    workers: Annotated[
        str, typer.Option(help="where texts are read: local, ray, or ray:ADDRESS of a cluster")
    ] = "local",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="a JSON file for the table")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the table as JSON")] = False,
) -> None:
    """Say which heads retrieve, copy, look back or rest on sinks, with what the text's loss owes to each."""
    from rich.console import Console
    from transformers.utils import logging

    from regard.analysis.roles import heads as measure
    from regard.cli.look import load, read_text
    from regard.cli.progress import Steps
    from regard.core.errors import wrong
    from regard.core.files import check_file
    from regard.experiments.run import parsed
    from regard.hosts import small

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    sizes = [int(part) for part in lengths.split(",") if part.strip().isdecimal()]
    if len(sizes) != lengths.count(",") + 1:
        raise wrong("--lengths", repr(lengths), "numbers of tokens, such as 256,512")
    if output is not None:
        check_file(output, "--output")
    parsed(workers)  # refused before a model is loaded
    content, origin = read_text(text, file)
    texts = lines_of(content, (file or "").endswith(".jsonl")) if lines else content
    network, tokenizer = load(model, None)
    with Steps() as steps:
        steps(f"looking at the heads of {model} with {origin}")
        found = measure(
            network,
            tokenizer,
            texts,
            causal=causal,
            lengths=sizes,
            seed=seed,
            name=small.TITLES.get(model, model),
            store=store,
            workers=workers,
            progress=steps,
        )
    if output is not None:
        found.save(output)
    if as_json:
        typer.echo(json.dumps(found.table(), indent=2))
        return
    show(Console(highlight=False), found)
    if output is not None:
        typer.echo(f"\ntable   {output}")


def lines_of(content: str, encoded: bool) -> list[str]:
    """The texts of a file that has one in each line, plain or as JSON; blank lines are none.

    Raises:
        ValueError: a line that is no such JSON, by its number.
    """
    every = [(place, line) for place, line in enumerate(content.splitlines(), start=1) if line.strip()]
    return [decoded(line, place) for place, line in every] if encoded else [line for _, line in every]


def decoded(line: str, place: int) -> str:
    """The text of one line of JSON."""
    from regard.core.errors import wrong

    try:
        given = json.loads(line)
    except ValueError:
        given = None
    text = given.get("text") if isinstance(given, dict) else given
    if not isinstance(text, str) or not text.strip():
        raise wrong("--file", f"line {place}: {line[:40]!r}", 'a JSON string that is not empty, or {"text": "…"}')
    return text


def show(console: Console, found: Roles) -> None:
    """Prints the heads of each role, and those that cause most."""
    from regard.analysis.roles import ROLES, errors_of

    count = sum(len(row) for row in next(iter(found.scores.values())).values.values())
    many = f" in {found.texts} texts" if found.texts > 1 else ""
    console.print(f"[bold]{found.model}[/]  {count} heads{many}", soft_wrap=True)
    for role, scores in found.scores.items():
        those = found.heads(role)
        said = "   ".join(f"L{layer}H{head} {scores.of((layer, head)):.2f}" for layer, head in those[:SHOWN])
        more = f"   and {len(those) - SHOWN} more" if len(those) > SHOWN else ""
        what = f"{role.replace('_', ' ')} ({len(those)} from {ROLES[role].threshold:g})"
        console.print(f"[bold]{what:<{LABEL}}[/]{said or 'none'}{more}", soft_wrap=True)
    rises = sorted(found.rises.items(), key=lambda rise: -rise[1])[:SHOWN]
    if rises:
        errors = errors_of(found.in_texts["loss_rise"]) if found.texts > 1 else {}
        spread = {head: f" ±{errors[head[0]][head[1]]:.3f}" if errors else "" for head, _ in rises}
        said = "   ".join(f"L{head[0]}H{head[1]} {rise:+.3f}{spread[head]}" for head, rise in rises)
        console.print(f"[bold]{'loss without it, nats':<{LABEL}}[/]{said}", soft_wrap=True)
    for note in found.notes:
        console.print(note, soft_wrap=True)
    console.print(READ, soft_wrap=True)
