"""`regard look`: what does the model attend to?"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.core.errors import wrong

if TYPE_CHECKING:
    from rich.console import Console

    from regard.records.format import Record

SHOWN = 3  # heads a role, and tokens, in the terminal summary
ROUTES = 0.02  # share of a state that an edge of the flow graph has at least
WEAKEST = 0.05  # score that a head needs there
ROLES = {
    "induction": "induction",
    "previous_token": "previous token",
    "duplicate_token": "duplicate token",
    "sink": "sink",
    "retrieval": "retrieval-like",
}


def look(
    model: Annotated[str, typer.Option(help="tiny, smollm2, minilm, a folder, or an id of a model hub")] = "tiny",
    tokenizer: Annotated[
        str | None, typer.Option(help="the folder of a tokenizer, for a model without or instead of its own")
    ] = None,
    text: Annotated[str | None, typer.Option(help="the text to look at; token ids where there is no tokenizer")] = None,
    file: Annotated[str | None, typer.Option(help="a file with the text; - reads standard input")] = None,
    target: Annotated[
        str | None,
        typer.Option(help="of an encoder-decoder, which reads the text: what it wrote; --generate lets it write"),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="the text is a message to the model, or a JSON list of messages: use its template"),
    ] = False,
    generate: Annotated[int, typer.Option(min=0, help="tokens to generate after the text, watched too")] = 0,
    layers: Annotated[str | None, typer.Option(help="layers to watch, such as 0,2-3; all if left out")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="query rows to sample; all if left out")] = None,
    keep: Annotated[
        bool | None,
        typer.Option(
            "--keep/--no-keep", help="keep q, k and log-sum-exp for `regard serve`; up to 256 MiB if left out"
        ),
    ] = None,
    predict: Annotated[
        int, typer.Option(min=0, help="how many of the likeliest next tokens to keep after each, of a language model")
    ] = 5,
    roles: Annotated[
        Path | None, typer.Option(help="a table of `regard heads -o`, whose roles and causal effects the page shows")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="a cache policy, such as 'snapkv(window=16)': the page shows what it keeps")
    ] = None,
    budget: Annotated[
        str, typer.Option(help="of --policy: tokens of a kv head, a share of the prompt, or bytes: 128, 0.25, 8MiB")
    ] = "0.25",
    neurons: Annotated[
        str | None,
        typer.Option(help="heads, such as 9.4,18.6, of which the page has q and k; those that lead roles if left out"),
    ] = None,
    routes_to: Annotated[
        int | None, typer.Option(help="a token, -1 for the last, into whose last state the page draws the flow graph")
    ] = None,
    beside: Annotated[
        Path | None,
        typer.Option(help="a record of as many tokens, an earlier one or of another prompt, shown beside this one"),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="the folder to write")] = Path("regard-look"),
    replace: Annotated[
        bool, typer.Option("--replace", help="replace the record in that folder; left out, a new name is taken")
    ] = False,
    browse: Annotated[bool, typer.Option("--open", help="open the page in the browser")] = False,
) -> None:
    """Look at what a model attends to: writes a record with a self-contained page, and prints a summary."""
    chosen = None if layers is None else parse_layers(layers)  # what needs no model first: its import takes seconds
    asked_heads = [] if neurons is None else parse_heads(neurons)
    if asked_heads and keep is False:
        raise wrong("--neurons", f"{neurons} with --no-keep", "queries and keys that are kept")
    content, origin = read_text(text, file)

    from regard.hosts.load import check_name

    check_name(model)

    from functools import partial

    from rich.console import Console
    from transformers.utils import logging

    from regard.analysis.roles import load_table
    from regard.cli.progress import Steps
    from regard.hosts import small
    from regard.hosts.budget import Budget
    from regard.networks import LM
    from regard.policies.named import policy_of
    from regard.records.chat import read_messages
    from regard.records.kept import mark_kept
    from regard.records.record import record
    from regard.web.page import page_html
    from regard.web.payload import read_header

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console = Console(highlight=False)
    asked, output = output, check_target(output, replace)
    table = None if roles is None else load_table(roles)
    if beside is not None:
        read_header(beside)
    if policy is not None:
        policy_of(policy)  # refused before a model is loaded
        Budget.of(budget)
    network, words = load(model, tokenizer)
    if words is None and text is None and file is None:
        raise wrong("--text", "nothing", f"token ids such as '3 17 5', or a --tokenizer: {model} has none")
    if chat and words is None:
        raise wrong("--chat", f"{model}, which has no tokenizer", "a --tokenizer with a chat template")
    what = content if words is not None else numbers("--text" if file is None else "--file", content)
    with Steps() as steps:
        steps(f"looking at {origin} with {model}")
        seen = record(
            network,
            words,
            read_messages(content) if chat else what,
            target if target is None or words is not None else numbers("--target", target),
            layers=chosen,
            rows=rows,
            generate=generate,
            keep=True if asked_heads else keep,
            predict=predict,
            name=small.TITLES.get(model) or (model if isinstance(network, LM) else None),
            command=shlex.join(["regard", *sys.argv[1:]]),
            progress=steps,
        )
        if asked_heads:
            seen = with_neurons(seen, asked_heads)
        if table is not None:
            seen = with_roles(seen, table)
        if policy is not None:
            steps(f"reading under {policy}")
            seen = mark_kept(seen, network, policy, budget)
        if routes_to is not None:
            steps("walking down the routes")
            seen = with_routes(seen, network, routes_to)
        steps("writing the page")
        seen.save(output, extra={"page.html": partial(page_html, beside=beside)})
    summarise(console, seen)
    for said in left_out(output, seen, keep):
        console.print(said, soft_wrap=True)
    if output != asked:
        console.print(f"\n{asked} holds an earlier look, which stays; this one is in {output}", soft_wrap=True)
    page = (output / "page.html").resolve()
    console.print(f"\n[bold]page[/]    {page.as_uri()}", soft_wrap=True)
    if seen.tensors is not None:
        console.print(f"[bold]live[/]    regard serve {shlex.quote(str(output))}", soft_wrap=True)
    if browse:
        typer.launch(page.as_uri())


def with_neurons(record: Record, heads: list[tuple[int, int]]) -> Record:
    """The record with the heads whose queries and keys its page is to have.

    Raises:
        ValueError: no such head, or one whose scores are no products of q and k.
    """
    for layer, head in heads:
        about = record.layer(layer)
        if head >= about["heads"] or f"{layer}/lse" not in (record.tensors or {}):
            most = f"heads 0 to {about['heads'] - 1} of a layer of softmax attention"
            raise wrong("--neurons", f"head {head} of layer {layer}, {about['mechanism']}", most)
    return dataclasses.replace(record, header={**record.header, "neurons": [list(head) for head in heads]})


def with_roles(record: Record, table: list[dict[str, Any]]) -> Record:
    """The record with what `regard heads` found of its heads.

    Raises:
        ValueError: the table is of other heads.
    """
    mine = {(layer["index"], head) for layer in record.layers for head in range(layer["heads"])}
    if missing := mine - {(row["layer"], row["head"]) for row in table}:
        raise wrong("--roles", f"a table without head {min(missing)}", "one of the same model")
    return dataclasses.replace(
        record, header={**record.header, "analyses": record.header.get("analyses", {}) | {"heads": table}}
    )


def with_routes(record: Record, network: Any, to: int) -> Record:
    """The record with the routes into a token, from a share of 0.02 up.

    Raises:
        ValueError: a record of two texts, a model of ours, or no such token.
    """
    import torch

    from regard.analysis.flow_routes import routes
    from regard.networks import LM

    if isinstance(network, LM) or "source" in record.tokens:
        raise wrong("--routes-to", record.header["model"]["architecture"], "a decoder of Transformers")
    return routes(network, torch.tensor(record.tokens["ids"]), [to], ROUTES).to(record)


def left_out(folder: Path, record: Record, keep: bool | None = None) -> list[str]:
    """What of the attention is not on the page, and cannot be recomputed: a line each."""
    from regard.web.payload import page_threshold
    from regard.web.vectors import encoded, vectors

    header, (heads, blobs) = record.header, vectors(folder, record.header)
    least = page_threshold(folder, header, encoded(blobs)) / 1000
    found = [f"weights below {least:g} are left out of the page, which has their means over cells of the map"]
    every = sum(layer["heads"] for layer in record.layers)
    if record.tensors is None:
        ways = {True: "this model's weights do not follow from them alone", False: "--keep keeps them"}
        why = "--keep keeps them, where weights follow from them alone" if keep is None else ways[keep]
        found.append(f"queries and keys were not kept: no weight can be recomputed ({why})")
    elif len(heads) < every:
        found.append(
            f"the page has queries and keys of {len(heads)} of {every} heads (--neurons 9.4,18.6 chooses them)"
        )
    if any(f"{layer['index']}/value_norms" not in record.arrays for layer in record.layers):
        found.append("how long the values of some layers are is not known: ‖A v‖ is not shown of them")
    depth = header["model"]["layers"]
    if depth and len(record.layers) < depth:
        found.append(f"{len(record.layers)} of {depth} layers were looked at")
    return found


def check_target(folder: Path, replace: bool) -> Path:
    """Where to write; raises unless a record can be written there: before any work is done."""
    from regard.records.format import check_folder, free_name

    check_folder(folder)
    return folder if replace else free_name(folder)


def read_text(text: str | None, file: str | None) -> tuple[str, str]:
    """The text and what to call it.

    Raises:
        ValueError: both or an empty text given, or a file that is not text. OSError: a file that cannot be read.
    """
    if text is not None and file is not None:
        raise wrong("--text", "a text and a --file", "one of them")
    if text is not None:
        content, origin = text, "the text"
    elif file is None:
        from regard.hosts.small import SAMPLE

        content, origin = SAMPLE.read_text(), "the sample text"
    elif file == "-":
        content, origin = decode(sys.stdin.buffer.read(), "standard input"), "standard input"
    else:
        content, origin = decode(Path(file).read_bytes(), file), file
    if not content.strip():
        raise wrong("--text" if text is not None else "--file", "an empty text", "at least one word")
    return content, origin


def decode(content: bytes, origin: str) -> str:
    """The bytes as UTF-8 text, refused where they are something else."""
    try:
        decoded = content.decode("utf-8")
    except UnicodeDecodeError:
        raise wrong("--file", f"{origin}, which is not UTF-8 text", "a text file") from None
    if "\0" in decoded:
        raise wrong("--file", f"{origin}, a binary file", "a text file")
    return decoded


def load(name: str, tokenizer: str | None = None):
    """``(model, tokenizer)`` by the name of a shipped model, a folder or a hub id; an encoder-decoder with its head."""
    from transformers import AutoModelForSeq2SeqLM

    from regard.hosts.load import load as load_model

    model, words = load_model(name, tokenizer)
    if (
        getattr(model.config, "is_encoder_decoder", False)
        and type(model.config) in AutoModelForSeq2SeqLM._model_mapping
    ):
        model = AutoModelForSeq2SeqLM.from_pretrained(model.config.name_or_path or name, local_files_only=True).eval()
    return model, words


def numbers(option: str, content: str) -> list[int]:
    """The token ids in a text, apart by spaces or commas.

    Raises:
        ValueError: something else is in it.
    """
    words = content.replace(",", " ").split()
    for word in words:
        if not word.isdecimal():
            raise wrong(option, repr(word), "token ids such as '3 17 5', or a --tokenizer: the model has none")
    return [int(word) for word in words]


def parse_layers(spec: str) -> list[int]:
    """The layers that ``0,2-4`` names.

    Raises:
        ValueError: the text is no such list.
    """
    layers: list[int] = []
    for part in spec.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise wrong("--layers", repr(spec), "numbers and ranges such as 0,2-4")
        layers.extend(range(int(first), int(last or first) + 1))
    return sorted(set(layers))


def parse_heads(spec: str) -> list[tuple[int, int]]:
    """The heads that ``9.4,18.6`` names, by layer and head.

    Raises:
        ValueError: the text is no such list.
    """
    heads = [part.strip().partition(".") for part in spec.split(",")]
    if not all(layer.isdecimal() and head.isdecimal() for layer, _, head in heads):
        raise wrong("--neurons", repr(spec), "layers and heads such as 9.4,18.6")
    return list(dict.fromkeys((int(layer), int(head)) for layer, _, head in heads))


def summarise(console: Console, record: Record) -> None:
    """Prints the strongest heads of each role, the sinks, and the tokens that receive most."""
    from rich.markup import escape

    from regard.records.token_texts import label

    header = record.header
    model = header["model"]
    heads = sum(layer["heads"] for layer in header["layers"])
    source = record.tokens.get("source")
    read = "" if source is None else f", from {len(source['texts']):,} that the encoder read"
    console.print(
        f"[bold]{escape(model['name'])}[/]  {model['architecture']}, {model['parameters'] / 1e6:.1f} M parameters; "
        f"{header['tokens']:,} tokens{read}, {heads} heads in {len(header['layers'])} layers"
        + (f"; {header['rows']['count']} query rows sampled" if header["rows"] else ""),
        soft_wrap=True,
    )
    turns = record.tokens.get("turns", [])
    if turns:
        line(console, "turns", [f"{role} {start}–{stop - 1}" for role, start, stop in turns])
    divided = ", ".join(str(layer["index"]) for layer in header["layers"] if layer["shares"])
    if divided:
        console.print(f"layers {divided}: shares |A| / Σ|A| of each row, whose own sum is not one", soft_wrap=True)
    for role, said in ROLES.items():
        ranked = [entry for entry in header["summary"][role][:SHOWN] if entry[2] >= WEAKEST]
        line(console, said, [f"L{layer}H{head} {score:.2f}" for layer, head, score in ranked])
    for key, said in (("sink_positions", "mass by position"), ("received", "receive most")):
        ranked = header["summary"][key][:SHOWN]
        line(console, said, [f"{label(record.tokens, at)!r} at {at}: {share:.3f}" for at, share in ranked])


def line(console: Console, label: str, parts: list[str]) -> None:
    """Prints one line of the summary."""
    from rich.text import Text

    said = Text(f"{label:<18}", style="bold").append("   ".join(parts) or "none", style="not bold")
    console.print(said, soft_wrap=True)
