"""The atlas as pages: one for each kind, with a line for each system, and an index."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regard.core.files import write_text

if TYPE_CHECKING:
    from regard.core.atlas import Entry
    from regard.core.kinds import Kind

INDEX = "README.md"
COMMAND = "regard atlas --write docs/atlas"
WRITTEN = f"Written by `{COMMAND}`; do not edit."


def pages() -> dict[str, str]:
    """The text of each page by its file's name."""
    from regard.core.atlas import entries
    from regard.core.kinds import KINDS

    by_kind = {kind.name: entries(kind=kind.name) for kind in KINDS.values()}
    found = {INDEX: index({KINDS[name]: inside for name, inside in by_kind.items()})}
    return found | {file_of(KINDS[name]): page(KINDS[name], inside) for name, inside in by_kind.items() if inside}


def write(folder: Path) -> int:
    """Writes all pages into the folder, and removes pages of kinds that have no entry; returns how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    made = pages()
    for old in folder.glob("*.md"):
        if old.name not in made and WRITTEN in old.read_text(encoding="utf-8"):
            old.unlink()
    for name, text in made.items():
        write_text(folder / name, text)
    return len(made)


def file_of(kind: Kind) -> str:
    """The file of a kind's page."""
    return f"{kind.heading.lower().replace(' ', '-')}.md"


def index(by_kind: dict[Kind, Sequence[Entry]]) -> str:
    """The page of all kinds."""
    lines = [("kind", "what it is", "used by", "systems", "status", "laws")]
    for kind, inside in by_kind.items():
        name = f"[{kind.heading.lower()}]({file_of(kind)})" if inside else kind.heading.lower()
        laws = str(len(laws_told(kind))) if kind.laws else "its own claim" if kind.open else "none yet"
        used = f"`{kind.verb}`" if kind.verb else "itself"
        lines.append((name, kind.meaning, used, str(len(inside)), counted(inside), laws))
    total = [entry for inside in by_kind.values() for entry in inside]
    about = f"{len(total)} published systems: {counted(total)}. `regard atlas NAME --long` has all of one."
    return "\n\n".join(["# Atlas", about, table(lines), WRITTEN]) + "\n"


def page(kind: Kind, inside: Sequence[Entry]) -> str:
    """The page of one kind."""
    from regard.core.mechanism import Mechanism

    growing = any(isinstance(entry.thing, type) and issubclass(entry.thing, Mechanism) for entry in inside)
    head = ("system", "what it does", "paper", "built", "what is claimed", "status", "figure")
    lines: list[tuple[str, ...]] = [(*head, *(("time, state",) if growing else ()))]
    for entry in inside:
        title = f"[{entry.title}]({entry.url})" if entry.url else entry.title
        told = (entry.claim.text, entry.claim.status, entry.claim.figure)
        cost = (f"{entry.thing.traits.time}, {entry.thing.traits.state}",) if growing else ()
        lines.append((f"`{entry.name}`", entry.summary, f"{title}, {entry.year}", built(entry), *told, *cost))
    parts = [f"# {kind.heading}", f"{kind.meaning} {used(kind)}", table(lines)]
    if kind.laws:
        held = [("law", "what holds"), *((name, what) for name, what in laws_told(kind).items())]
        parts += ["## Laws", "`regard laws NAME` holds a system to them.", table(held)]
    return "\n\n".join([*parts, f"{WRITTEN} [All kinds]({INDEX})"]) + "\n"


def built(entry: Entry) -> str:
    """What of the paper's method stands here, and what shows that it is the paper's."""
    whole = f"part; missing: {entry.missing}" if entry.missing else "complete"
    return f"{whole}; by {entry.fidelity}" if entry.fidelity else whole


def used(kind: Kind) -> str:
    """How one uses the things of a kind."""
    called = f"`{kind.verb}(NAME, …)`" if kind.verb else "`regard.find(NAME).thing`"
    return f"Used by {called}."


def laws_told(kind: Kind) -> dict[str, str]:
    """What each law of the kind says holds."""
    found = {name: inspect.getdoc(law) or "" for name, law in kind.module.LAWS.items()}
    return {name: " ".join(text.split("\n\n")[0].split()) for name, text in found.items()}


def counted(inside: Sequence[Entry]) -> str:
    """How many entries have each status."""
    found = Counter(entry.claim.status for entry in inside)
    return ", ".join(f"{count} {status}" for status, count in sorted(found.items()))


def table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first line is its head."""
    rows = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
