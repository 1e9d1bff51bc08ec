"""`regard laws`: does it hold?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

STYLES = {"holds": "green", "broken": "bold red", "not claimed": "dim"}


def laws(
    name: Annotated[str, typer.Argument(help="a thing of the atlas")] = "",
    every: Annotated[bool, typer.Option("--all", help="examine all things whose kind has laws")] = False,
) -> None:
    """Hold a thing of the atlas to the laws of its kind; exit status 1 if one is broken."""
    import regard
    from regard.core.errors import a, wrong
    from regard.core.kinds import KINDS

    if bool(name) == every:
        raise wrong("name", repr(name) + (" with --all" if every else ""), "a name of the atlas, or --all alone")
    lawful = [kind.name for kind in KINDS.values() if kind.laws]
    chosen = [entry for entry in regard.entries() if entry.kind in lawful] if every else [regard.find(name)]
    broken = 0
    for entry in chosen:
        if entry.kind not in lawful:
            raise wrong("name", f"{name!r}, {a(entry.kind)}", f"of a kind that has laws: {', '.join(lawful)}")
        broken += report(entry.name, entry.kind, entry.thing)
    raise typer.Exit(1 if broken else 0)


def report(name: str, kind: str, thing: Any) -> int:
    """Prints the table of one thing, law by law as they are examined; returns how many are broken."""
    from rich.console import Console
    from rich.text import Text

    from regard.laws import devices, examine, examples_of, laws_of

    console, broken = Console(highlight=False), 0
    examples = examples_of(thing)
    width = max(len(example.label) for example in examples)
    for law in laws_of(kind):
        for example in examples:
            for device in devices():
                finding = examine(example, law, device, kind)
                broken += finding.verdict == "broken"
                line = Text(f"{name}  {law:<11} {example.label:<{width}}  ")
                line.append(f"{finding.verdict:<11}", style=STYLES[finding.verdict])
                console.print(line.append(f"  {finding.detail}"), soft_wrap=True)
    return broken
