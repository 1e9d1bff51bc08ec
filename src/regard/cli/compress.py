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
        str | None,
        typer.Option(help="tokens of a kv head, shares of the prompt, or bytes: 128,0.25,8MiB; 0.125 if left out"),
    ] = None,
    task: Annotated[str, typer.Option(help="needle: a number asked for; text: how a text goes on")] = "needle",
    length: Annotated[int, typer.Option(min=64, help="tokens of a prompt")] = 1024,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="how many; 4 if left out, 10 with --advise, which takes 6 or more")
    ] = None,
    question: Annotated[
        str, typer.Option(help="of needle, whether it is read before the eviction: known, unknown or both")
    ] = "both",
    file: Annotated[Path | None, typer.Option(help="your kind of text; the language's reference if left out")] = None,
    advise: Annotated[
        str | None,
        typer.Option(
            help="so much memory for the cache, such as 8MiB: which policy to take, at which budget up to that (all of "
            "it, a half and a quarter if no --budgets are given), and why; random is among the --policies"
        ),
    ] = None,
    kept: Annotated[
        Path | None, typer.Option(help="a JSON file for what each layer and kv head keeps of the first prompt")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="a JSON file for every single row")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Measure quality, bytes and time of cache policies beside the full cache; a prompt is read once for all."""
    from rich.console import Console
    from transformers.utils import logging

    from regard.cli.progress import Steps
    from regard.compare.cache_report import FEWEST, SETTINGS, TASKS, advice, kept_tokens, measured
    from regard.core.files import check_file, write_text
    from regard.core.spec import split_outside
    from regard.hosts.budget import Budget
    from regard.hosts.load import load
    from regard.policies.named import policy_of

    if task not in TASKS:
        raise wrong("--task", repr(task), f"one of {', '.join(TASKS)}{did_you_mean(task, TASKS)}")
    if question not in (*SETTINGS, "both"):
        raise wrong("--question", repr(question), f"one of {', '.join(SETTINGS)}, both")
    names = [name.strip() for name in split_outside(policies, ",")]
    known = [SETTINGS[question]] if question in SETTINGS else list(SETTINGS.values())
    if task == "text" and question == "both":
        known = [True]  # how a text goes on is asked by no question: all of it is read before the eviction
    for name in names:
        policy_of(name)  # refused before a model is loaded
    memory = Budget.of(advise).bytes if advise is not None else None
    if advise is not None and memory is None:
        raise wrong("--advise", repr(advise), "bytes, such as 8MiB")
    if memory is not None and not {"random"} < set(names):
        raise wrong(
            "--policies", repr(policies), "random and another one, so that --advise has what to hold it against"
        )
    sizes = [size.strip() for size in (budgets or "0.125").split(",")]
    if memory is not None:
        sizes = (
            [size for size in sizes if size != advise]
            if budgets
            else [str(Budget(bytes=memory // part)) for part in (4, 2)]
        )
        sizes.append(str(advise))
    [Budget.of(size) for size in sizes]
    if output is not None:
        check_file(output, "--output")
    count = prompts or (4 if advise is None else 10)
    if memory is not None and count < FEWEST:
        typer.echo(
            f"--prompts {count}: too few for advice, which takes {FEWEST} or more; measured all the same", err=True
        )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    network, tokenizer = load(model)
    if tokenizer is None:
        raise wrong("--model", f"{model}, which has no tokenizer", "one that has")
    text = None if file is None else file.read_text(encoding="utf-8")
    asked = TASKS[task](tokenizer, length, count, text=text)
    ways = [(name, size) for size in sizes for name in names]
    small = {way: too_small(network, *way, length) for way in ways}
    if advise is None and any(small.values()):
        raise wrong("--budgets", next(filter(None, small.values())), "more, or a policy that always keeps less")
    ways = [way for way in ways if not small[way]]
    with Steps() as steps:
        rows = list(measured(network, asked, ways, known, steps))
    if output is not None:
        write_text(output, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if kept is not None:
        found = [kept_tokens(network, tokenizer, asked[0], *way, seen) for seen in known for way in ways]
        write_text(kept, json.dumps(found) + "\n")
    advices = {seen: str(advice(rows, seen, memory)) for seen in known} if advise is not None else {}
    if as_json:
        said = {name_of(seen): told for seen, told in advices.items()}
        left_out = list(filter(None, small.values()))
        typer.echo(json.dumps({"rows": summed(rows), "advice": said, "left_out": left_out}, indent=2))
        return
    console = Console(highlight=False)
    for why in filter(None, small.values()):
        console.print(f"left out: {why}", soft_wrap=True)
    for seen in known:
        asking = "" if task == "text" else f", question {name_of(seen)}"
        title = f"{model}, {task}, {length} tokens, {count} prompts{asking}"
        console.print(table_of([row for row in rows if row.known == seen], title))
        if seen in advices:
            console.print(advices[seen], soft_wrap=True)
    console.print(LEGEND, soft_wrap=True)


def too_small(network: Any, policy: str, budget: str, length: int) -> str:
    """Why a policy cannot do with a budget for prompts of ``length`` tokens; empty where it can."""
    from regard.hosts.budget import Budget
    from regard.hosts.compress import forgetful
    from regard.hosts.focus import head_sizes
    from regard.policies.named import policy_of

    made, layers, (_, kv_heads, dim) = policy_of(policy), len(forgetful(network)), head_sizes(network)
    entry = 2 * dim * network.dtype.itemsize + 8 + 4 * len(made.keeps)  # key, value, position, what is noted
    size = Budget.of(budget).size(length, layers * kv_heads, entry)
    least = min(made.budget(size, rank, layers, length) for rank in range(layers))
    if least >= made.forced:
        return ""
    return f"{policy} at {budget}, of {least} tokens a head in some layer, of which it always keeps {made.forced}"


LEGEND = (
    "known: the question was read before the eviction. right: of the answer's tokens the share that is the likeliest. "
    "nats: the mean negative log-probability of one. MB: keys and values when the answer begins. read, step: CPU time "
    "of the prompt, with what the policy does, and of a token after it, over the full cache's."
)


def name_of(known: bool) -> str:
    """How a setting is called."""
    return "known" if known else "unknown"


def table_of(rows: Sequence[Kept], title: str) -> Any:
    """The means as a table."""
    from rich.table import Table

    table = Table("policy", "budget", "right", "nats", "MB", "read", "step", title=title)
    for row in summed(rows):
        figures = (f"{row['right']:.0%}", f"{row['nats']:.2f}", f"{row['bytes'] / 1e6:.1f}")
        table.add_row(row["policy"], row["budget"], *figures, f"{row['read']:.2f}×", f"{row['step']:.2f}×")
    return table


def summed(rows: Sequence[Kept]) -> list[dict[str, Any]]:
    """The means, as in the JSON."""
    from regard.compare import cache_report

    return cache_report.summed(rows)
