"""`regard flow`: what does a token take of every earlier one, through all layers?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

MOST = 0.9
COLLAPSED = (
    "nearly all of it is from the first token, where causal models rest what they need nowhere: --without 0 leaves it "
    "out, --way routes tells heads and networks instead"
)
"""What is said where the first token has more than `MOST`."""
SHOWN = 12  # tokens, edges
WAYS = ("rollout", "maxflow", "routes")


def flow(
    model: Annotated[str, typer.Option(help="tiny, smollm2, minilm, a folder, or an id of a model hub")] = "tiny",
    text: Annotated[str | None, typer.Option(help="the text; the sample text if left out")] = None,
    file: Annotated[str | None, typer.Option(help="a file with it; - reads standard input")] = None,
    to: Annotated[int, typer.Option(help="the token whose sources are wanted, -1 for the last")] = -1,
    way: Annotated[str, typer.Option(help="rollout, maxflow (at most 512 tokens) or routes")] = "rollout",
    without: Annotated[str, typer.Option(help="of rollout: tokens that are left out, such as 0")] = "",
    threshold: Annotated[float, typer.Option(help="of routes: the least share of a state that an edge has")] = 0.04,
    neurons: Annotated[int, typer.Option(help="of routes: how many neurons are named of each network")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="a JSON file for the table")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the table as JSON")] = False,
) -> None:
    """Say where a token's state comes from: by tokens (rollout, maxflow), or by heads and networks (routes)."""
    from rich.console import Console
    from transformers.utils import logging

    from regard.analysis.patching import ids_of
    from regard.cli.look import load, read_text
    from regard.core.errors import wrong
    from regard.core.files import check_file, write_text

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if way not in WAYS:
        raise wrong("--way", repr(way), f"one of {', '.join(WAYS)}")
    left = without.replace(",", " ").split()
    if not all(part.isdecimal() for part in left):
        raise wrong("--without", repr(without), "positions of tokens, such as 0,1")
    if output is not None:
        check_file(output, "--output")
    if neurons < 0 or (neurons and way != "routes"):
        raise wrong("--neurons", str(neurons), "a number from 0 on, with --way routes")
    content, _ = read_text(text, file)
    content = content if file is None else content.rstrip("\r\n")  # a file's last line end is nobody's question
    network, tokenizer = load(model, None)
    if tokenizer is None:
        raise wrong("--model", f"{model}, which has no tokenizer", "one that has")
    ids = ids_of(tokenizer, content)
    found = followed(network, ids, to, way, [int(part) for part in left], threshold)
    if output is not None:
        write_text(output, json.dumps(found.table(), indent=1))
    if as_json:
        typer.echo(json.dumps(found.table(), indent=2))
        return
    console = Console(highlight=False)
    show(console, found, tokenizer, ids)
    if neurons:
        show_neurons(console, network, ids, found, neurons)


def followed(network: Any, ids: Tensor, to: int, way: str, without: list[int], threshold: float) -> Any:
    """The flow into one token."""
    from regard.analysis.flow import flow as measure
    from regard.analysis.flow_routes import routes
    from regard.core.errors import wrong

    if way != "routes":
        return measure(network, to, cast(Literal["rollout", "maxflow"], way), ids=ids, without=without)
    if without:
        raise wrong("--without", f"{without}", "none: routes leave out what is below their threshold")
    return routes(network, ids, [to], threshold)


def show(console: Console, found: Any, tokenizer: Any, ids: Tensor) -> None:
    """Prints the tokens, or the edges, that give most."""
    from rich.table import Table

    from regard.analysis.flow_routes import Routes

    def token(slot: int) -> str:
        return f"{tokenizer.decode(ids[slot : slot + 1])!r} at {slot}"

    console.print(f"into {token(found.tokens[0])}", markup=False)
    if not isinstance(found, Routes):
        best = found.values[0].topk(min(SHOWN, len(ids)))
        table = Table("from", found.way)
        for value, slot in zip(*map(list, best), strict=True):
            table.add_row(token(int(slot)), f"{float(value):.3g}")
        console.print(table)
        if found.way == "rollout" and int(best.indices[0]) == 0 and float(best.values[0]) > MOST:
            console.print(COLLAPSED, soft_wrap=True)
        return
    table = Table("layer", "part", "from", "to", "share")
    strongest = sorted((edge for edge in found.edges if edge.part != "resid"), key=lambda edge: -edge.weight)
    for edge in strongest[:SHOWN]:
        part = edge.part if edge.head is None else f"head {edge.head}"
        table.add_row(str(edge.layer), part, token(edge.source), token(edge.to), f"{edge.weight:.3f}")
    console.print(table)
    console.print(f"{len(found.edges)} edges from {found.threshold:g} up; --json has all of them, --threshold more")


def show_neurons(console: Console, network: Any, ids: Tensor, found: Any, count: int) -> None:
    """Prints the strongest neurons of the strongest edges of feed-forward networks."""
    from rich.table import Table

    from regard.analysis.route_neurons import by_neuron

    table = Table("layer", "at", "share", "neurons, with their share")
    strong = sorted(by_neuron(network, ids, found, count).items(), key=lambda one: -one[0].weight)
    for edge, told in strong[:SHOWN]:
        named = ", ".join(f"{neuron}: {share:.3f}" for neuron, share in told)
        table.add_row(str(edge.layer), str(edge.to), f"{edge.weight:.3f}", named)
    console.print(table)
