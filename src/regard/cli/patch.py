"""`regard patch`: which heads, or parts of blocks, make a model answer one prompt unlike another?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

TOLD = (
    "{shown} of {sites} sites, those with most effect; --json has all. 1: the site alone gives the donor's difference, "
    "0: it moves nothing, below 0: it moves the answer the other way"
)
SHOWN = 12  # sites


def patch(
    base: Annotated[str, typer.Argument(help="the prompt whose run is changed")],
    donor: Annotated[str, typer.Argument(help="the prompt whose activations are put in, of as many tokens")],
    answers: Annotated[str, typer.Option(help="the answers of donor and base, such as ' Mary, John'")],
    model: Annotated[str, typer.Option(help="tiny, smollm2, a folder, or an id of a model hub")] = "tiny",
    sites: Annotated[str, typer.Option(help="z (heads), resid, attn or mlp")] = "z",
    slots: Annotated[str, typer.Option(help="last, each position by itself, or all at once")] = "last",
    store: Annotated[Path | None, typer.Option(help="a folder that keeps what is measured")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the table as JSON")] = False,
) -> None:
    """Put the activations of one prompt into the run of another, site by site, and say how far the answer moves."""
    from rich.console import Console
    from rich.table import Table
    from transformers.utils import logging

    from regard.analysis.patching import ids_of
    from regard.analysis.patching import patch as measure
    from regard.cli.look import load
    from regard.core.errors import wrong

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    words = tuple(answers.split(","))
    if len(words) != 2 or not all(words):
        raise wrong("--answers", repr(answers), "two words with a comma between, the donor's answer first")
    network, tokenizer = load(model, None)
    given = {"last": [-1], "each": list(range(len(ids_of(tokenizer, base)))), "all": [None]}
    if slots not in given:
        raise wrong("--slots", repr(slots), "last, each or all")
    found = measure(
        network, base, donor, (words[0], words[1]), tokenizer=tokenizer, sites=sites, slots=given[slots], store=store
    )
    if as_json:
        typer.echo(json.dumps(found.table(), indent=2))
        return
    ends = f"{found.base[0]:+.2f} in the base, {found.donor[0]:+.2f} in the donor"
    table = Table("site", "effect")
    for site, effect in sorted(found.ranked(), key=lambda entry: -abs(entry[1]))[:SHOWN]:
        table.add_row(site.label, f"{effect:+.3f}")
    console = Console(highlight=False)
    console.print(f"logit of {words[0]!r} over {words[1]!r}: {ends}", markup=False)
    console.print(table)
    console.print(TOLD.format(shown=min(SHOWN, len(found.sites)), sites=len(found.sites)), soft_wrap=True)
