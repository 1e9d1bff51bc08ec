"""`regard steer`: what does a model say if it attends otherwise?"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regard.core.errors import wrong
from regard.core.files import write_text

if TYPE_CHECKING:
    from regard.core.edit import Edit

LIKELIEST, COMPARED = 5, 10
"""Next tokens that are printed, and that a page compares of either way."""


def steer(
    edit: Annotated[
        list[str] | None, typer.Option("--edit", help="such as 'zero_tuning(gamma=0.6)'; more than one act in order")
    ] = None,
    edits: Annotated[Path | None, typer.Option(help="a file of edits, as regard.edits.saved.save writes it")] = None,
    on: Annotated[
        list[str] | None, typer.Option("--on", help="a passage of the text that edits of keys are about")
    ] = None,
    model: Annotated[str, typer.Option(help="tiny, smollm2, a folder, or an id of a model hub")] = "tiny",
    text: Annotated[str | None, typer.Option(help="the prompt; the sample text if left out")] = None,
    file: Annotated[str | None, typer.Option(help="a file with the prompt; - reads standard input")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="how many tokens to generate")] = 24,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="a folder for two records with pages: before and after")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="a page of text, next tokens and maps, in -o or regard-steer")
    ] = False,
) -> None:
    """Run a model with its attention edited, and without, and print what it says either way."""
    from rich.console import Console
    from rich.text import Text
    from transformers.utils import logging

    from regard.cli.look import load, read_text
    from regard.hosts.steer import steer as steered

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    content, _ = read_text(text, file)
    network, tokenizer = load(model, None)
    if tokenizer is None:
        raise wrong("--model", f"{model}, which has no tokenizer", "one that has")
    chosen = read_edits(edit or [], edits, on or [], tokenizer, content)
    console = Console(highlight=False)
    output = Path("regard-steer") if compare and output is None else output
    ways = {"before": steered(network), "after": steered(network, *chosen)}
    said: dict[str, Any] = {}
    for name, way in ways.items():
        if name == "after":
            told = Text("edit    ", style="bold").append(", ".join(map(repr, chosen)), style="not bold")
            console.print(told, soft_wrap=True)
        with way:
            said[name] = generated(network, tokenizer, content, tokens)
            show(console, name, tokenizer, said[name])
            if output is not None:
                beside = output / "before" if name == "after" else None
                keep(console, network, tokenizer, content, output / name, beside)
    if compare and output is not None:
        page = output / "compare.html"
        write_text(page, compared(tokenizer, content, chosen, said["before"], said["after"], on or []))
        console.print(f"compare  {page.resolve().as_uri()}", soft_wrap=True)


def read_edits(texts: list[str], file: Path | None, passages: list[str], tokenizer: Any, content: str) -> list[Edit]:
    """The edits that were asked for.

    Raises:
        ValueError: none, one that is about passages and was given none, or passages that none is about.
    """
    from regard.edits.saved import edit_of, load
    from regard.hosts.spans import spans_of

    spans = spans_of(tokenizer, content, *passages) if passages else None
    try:
        found = [edit_of(text, spans) for text in texts]
    except ValueError as error:
        if spans is None and str(error).startswith("keys: got None"):
            wanted = "--on 'a passage' of the text, more than once for several, or tokens=[id] in the edit"
            raise wrong("--on", f"none for {texts}, which is about some of the text", wanted) from error
        raise
    if passages and not any(edit.where.keys is not None for edit in found):
        raise wrong("--on", f"{passages} for {texts}, which is about no passage", "none, or an edit such as pasta")
    found += load(file) if file is not None else []
    if not found:
        raise wrong("--edit", "none", "an edit such as 'pasta(strength=2.0)' --on 'a passage', or --edits FILE")
    return found


def generated(network: Any, tokenizer: Any, content: str, tokens: int) -> tuple[Any, Any]:
    """``(probabilities of the next token (vocabulary,), new ids)``."""
    import torch

    inputs = tokenizer(content, return_tensors="pt").to(network.device)
    with torch.no_grad():
        out = network.generate(
            **inputs, max_new_tokens=tokens, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    return out.logits[0][0].float().softmax(-1).cpu(), out.sequences[0, inputs["input_ids"].shape[1] :]


def show(console: Any, name: str, tokenizer: Any, said: tuple[Any, Any]) -> None:
    """Prints the likeliest next tokens and how the text goes on."""
    from rich.text import Text

    chances = said[0].topk(LIKELIEST)
    likely = [f"{tokenizer.decode(index)!r} {chance:.1%}" for chance, index in zip(*map(list, chances), strict=True)]
    console.print(Text(f"{name:<8}", style="bold").append("   ".join(likely), style="not bold"), soft_wrap=True)
    console.print(Text(tokenizer.decode(said[1])), soft_wrap=True)


def compared(tokenizer: Any, content: str, edits: list[Edit], before: Any, after: Any, passages: list[str]) -> str:
    """The page of both ways."""
    import torch

    from regard.web.steered import steered_html

    ids = torch.cat([chances.topk(COMPARED).indices for chances, _ in (before, after)]).unique().tolist()
    chances = [(tokenizer.decode(token), float(before[0][token]), float(after[0][token])) for token in ids]
    old, new = ([tokenizer.decode(token) for token in said] for _, said in (before, after))
    p, q = before[0].double(), after[0].double()
    apart = torch.where(p > 0, p * (p.clamp(min=1e-300).log() - q.clamp(min=1e-300).log()), 0).sum().item()
    told = [repr(edit) for edit in edits]
    return steered_html(content, told, old, new, chances, apart, Path("after/page.html"), passages)


def keep(console: Any, network: Any, tokenizer: Any, content: str, folder: Path, beside: Path | None) -> None:
    """Writes a record of the text, with its page, which shows the record ``beside`` it too."""
    from functools import partial

    from regard.records.record import record
    from regard.web.page import page_html

    seen = record(network, tokenizer, content, command=shlex.join(["regard", *sys.argv[1:]]))
    seen.save(folder, extra={"page.html": partial(page_html, beside=beside)})
    console.print(f"page     {(folder / 'page.html').resolve().as_uri()}", soft_wrap=True)
