"""The atlas: every published thing that regard holds, declared beside its code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from regard.core.errors import did_you_mean, wrong
from regard.core.index import Declaration, scan
from regard.core.search import ranked

Status = Literal["works", "partly", "not reproduced"]
T = TypeVar("T")

STATUSES = ("works", "partly", "not reproduced")


@dataclass(frozen=True)
class Claim:
    """What the tests reproduce of the paper, how far, and the command that measured it."""

    text: str
    status: Status
    figure: str
    command: str


@dataclass(frozen=True)
class Entry:
    """One published system.

    Args:
        name: short name, lower case, words joined by ``_``. row: its id in the catalogue of systems, None outside it.
        family, kind: the shelf it stands on, and what it is (mechanism, kernel, projection …).
        title, arxiv, year: the paper. summary: what it does, one sentence. claim: what is reproduced.
        where: ``package.module.name`` of the class or function. traits: what it claims, as far as its class says.
    """

    name: str
    row: int | None
    family: str
    kind: str
    title: str
    arxiv: str | None
    year: int
    summary: str
    claim: Claim
    aliases: tuple[str, ...] = ()
    where: str = ""
    traits: Mapping[str, Any] = field(default_factory=dict, compare=False)
    given: Any = field(default=None, compare=False, repr=False)

    @property
    def thing(self) -> Any:
        """The class or function itself, whose module is imported now."""
        if self.given is not None:
            return self.given
        module, _, name = self.where.rpartition(".")
        return getattr(import_module(module), name)

    @property
    def url(self) -> str | None:
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        hidden = ("given", "claim", "traits")
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in hidden}
        return plain | {"url": self.url, "claim": asdict(self.claim)}


ENTRIES: dict[str, Entry] = {}
"""What has been registered by an import: all of regard that is in use, and what users add."""


def published(
    name: str,
    *,
    family: str,
    kind: str = "mechanism",
    row: int | None = None,
    title: str,
    arxiv: str | None = None,
    year: int,
    claim: Claim,
    aliases: tuple[str, ...] = (),
) -> Callable[[T], T]:
    """Registers the class or function below it; its docstring's first sentence is the entry's summary.

    All arguments are literals, so that the atlas can be read without importing anything.

    Raises:
        ValueError: the name is taken or ill-formed, the status unknown, or the docstring missing.
    """

    def register(thing: T) -> T:
        named: Any = thing
        where = f"{named.__module__}.{named.__qualname__}"
        entry = checked_entry(where, name, thing.__doc__, family, kind, row, title, arxiv, year, claim, aliases, thing)
        taken = ENTRIES.get(name) or indexed().get(name)
        if taken is not None and (taken.where != where or "<locals>" in where):
            raise wrong("name", repr(name), f"a name not taken by {taken.where}")
        ENTRIES[name] = entry
        return thing

    return register


def checked_entry(
    where: str,
    name: str,
    doc: str | None,
    family: str,
    kind: str,
    row: int | None,
    title: str,
    arxiv: str | None,
    year: int,
    claim: Claim,
    aliases: tuple[str, ...],
    thing: Any = None,
    traits: Mapping[str, Any] = MappingProxyType({}),
) -> Entry:
    """The entry of a declaration, which is checked."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise wrong("name", repr(name), "lower-case words joined by '_'")
    if claim.status not in STATUSES:
        raise wrong("claim.status", repr(claim.status), f"one of {STATUSES}")
    if not doc:
        raise wrong(where, "no docstring", "a docstring whose first sentence says what it does")
    summary = " ".join(doc.split("\n\n")[0].split())
    return Entry(name, row, family, kind, title, arxiv, year, summary, claim, aliases, where, traits, thing)


@cache
def indexed() -> Mapping[str, Entry]:
    """Every entry of regard's own by its name, read from the source."""
    found: dict[str, Entry] = {}
    for declaration in scan(Path(__file__).parents[1], "regard"):
        entry = entry_of(declaration)
        if entry.name in found:
            raise wrong("name", repr(entry.name), f"a name not taken by {found[entry.name].where}")
        found[entry.name] = entry
    return MappingProxyType(found)


def entry_of(declaration: Declaration) -> Entry:
    """The entry that a declaration in the source makes."""
    given = dict(declaration.arguments)
    _, claim = given.pop("claim")
    told = Claim(**{("text", "status", "figure", "command")[int(k)] if k.isdigit() else k: v for k, v in claim.items()})
    about = {"kind": "mechanism", "row": None, "arxiv": None, "aliases": (), **given, "claim": told}
    name = about.pop("0") if "0" in about else about.pop("name")
    return checked_entry(where=declaration.where, name=name, doc=declaration.doc, traits=declaration.traits, **about)


def everything() -> dict[str, Entry]:
    """Every entry by its name: those of regard, and what else has been registered."""
    return {**indexed(), **{name: entry for name, entry in ENTRIES.items() if name not in indexed()}}


def entries(pattern: str = "*", *, kind: str | None = None, family: str | None = None) -> list[Entry]:
    """The entries, by name: those whose name or alias fits a ``pattern`` such as ``"linear*"``, of a kind, of a family.

    Raises:
        LookupError: no entry is of this kind or family; the message names those that there are.
    """
    found = [entry for _, entry in sorted(everything().items())]
    for field_name, wanted in (("kind", kind), ("family", family)):
        known = sorted({getattr(entry, field_name) for entry in found})
        if wanted is not None and wanted not in known:
            offered = f"one of {', '.join(known)}{did_you_mean(wanted, known)}"
            raise wrong(field_name, repr(wanted), offered, LookupError)
    return [
        entry
        for entry in found
        if any(fnmatchcase(name, pattern) for name in (entry.name, *entry.aliases))
        and kind in (None, entry.kind)
        and family in (None, entry.family)
    ]


def search(query: str) -> list[Entry]:
    """The entries that answer the words of ``query``, or a need such as "cheap long context", best first."""
    return ranked(query, everything().values())


def find(name: str) -> Entry:
    """The entry of this name or alias.

    Raises:
        LookupError: no such entry; the message names the nearest.
    """
    known = everything()
    if name in known:
        return known[name]
    for entry in known.values():
        if name in entry.aliases:
            return entry
    meant = did_you_mean(name, [*known, *(alias for entry in known.values() for alias in entry.aliases)])
    near = [entry.name for entry in search(name)[:3]]
    such = f", such as {', '.join(near)}" if near else ""
    raise wrong("name", repr(name), f"one of the atlas{such}; `regard atlas` lists all{meant}", LookupError)
