"""`regard laws`: does it hold?"""

from __future__ import annotations

from typing import Annotated

import typer

STYLES = {"holds": "green", "broken": "bold red", "not claimed": "dim"}


def laws(
    name: Annotated[str, typer.Argument(help="a mechanism of the atlas")] = "",
    every: Annotated[bool, typer.Option("--all", help="examine every mechanism")] = False,
) -> None:
    """Hold a mechanism to the laws; exit status 1 if one is broken."""
    import regard
    from regard.core.errors import a, wrong
    from regard.core.mechanism import Mechanism

    if bool(name) == every:
        raise wrong("name", repr(name) + (" with --all" if every else ""), "the name of a mechanism, or --all alone")
    mechanisms = regard.entries(kind="mechanism") if every else [regard.find(name)]
    broken = 0
    for entry in mechanisms:
        if not (isinstance(entry.thing, type) and issubclass(entry.thing, Mechanism)):
            raise wrong("name", f"{name!r}, {a(entry.kind)}", "a mechanism")
        broken += report(entry.name, entry.thing)
    raise typer.Exit(1 if broken else 0)


def report(name: str, mechanism: type) -> int:
    """Prints the table of one mechanism, law by law as they are examined; returns how many are broken."""
    from rich.console import Console
    from rich.text import Text

    from regard.laws import LAWS, devices, examine

    console, broken = Console(highlight=False), 0
    examples = mechanism.examples()
    width = max(len(example.label) for example in examples)
    for law in LAWS:
        for example in examples:
            for device in devices():
                finding = examine(example, law, device)
                broken += finding.verdict == "broken"
                line = Text(f"{name}  {law:<11} {example.label:<{width}}  ")
                line.append(f"{finding.verdict:<11}", style=STYLES[finding.verdict])
                console.print(line.append(f"  {finding.detail}"), soft_wrap=True)
    return broken
