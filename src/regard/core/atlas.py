"""The atlas: every published thing that regard holds, declared beside its code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from regard.core.errors import did_you_mean, wrong
from regard.core.index import Declaration, scan
from regard.core.kinds import KINDS, kind_named
from regard.core.results import Result, result_of
from regard.core.search import ranked

Fidelity = Literal["authors' code", "third-party code", "hand values", "abstract only"]
T = TypeVar("T")

PACKAGE = "regard"
FIDELITIES = ("authors' code", "third-party code", "hand values", "abstract only")


@dataclass(frozen=True)
class Claim:
    """One thing that a paper says: in words, what measures it, and the code that asserts it.

    Args:
        text: what is said. cells: what is measured, ``"module.name"`` below `regard.claims` of a list of cells, a class
            of cells without fields, or a function of the arguments that follow, ``"small_lm.losses(layers='gla*2')"``.
        holds: likewise the function that says of the figures whether the text is true.
    """

    text: str
    cells: str
    holds: str


@dataclass(frozen=True)
class Entry:
    """One published system.

    Args:
        name: short name, lower case, words joined by ``_``. row: its id in the catalogue of systems, None outside it.
        family, kind: the shelf it stands on, and what it is (`KINDS`: mechanism, projection, pattern …).
        title, arxiv, year: the paper. summary: what it does, one sentence. claims: what its paper says and is measured.
        missing: what of the paper's method is not built, empty where the system is complete. fidelity: what shows that
         it is the paper's: values from the authors' code, from a third party's, values worked out by hand from the
         paper, or nothing but its abstract; None where nobody has said.
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
    claims: tuple[Claim, ...]
    missing: str = ""
    fidelity: Fidelity | None = None
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

    @property
    def system(self) -> str:
        """``"complete"``, or ``"part"`` where something of the paper's method is missing."""
        return "part" if self.missing else "complete"

    @property
    def said(self) -> str:
        """What is claimed, in words."""
        return "; ".join(claim.text for claim in self.claims)

    @property
    def claim(self) -> Result:
        """What came out of the claims, read from the committed results."""
        return result_of(self.name, self.claims)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        hidden = ("given", "claims", "traits")
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in hidden}
        return plain | {"url": self.url, "system": self.system, "claim": self.claim.as_dict()}


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
    claim: Claim | tuple[Claim, ...],
    missing: str = "",
    fidelity: Fidelity | None = None,
    aliases: tuple[str, ...] = (),
) -> Callable[[T], T]:
    """Registers the class or function below it; its docstring's first sentence is the entry's summary.

    All arguments are literals, so that the atlas can be read without importing anything.

    Raises:
        ValueError: the name is taken or ill-formed, the kind or the status unknown, or the docstring missing.
    """

    def register(thing: T) -> T:
        named: Any = thing
        where = f"{named.__module__}.{named.__qualname__}"
        claims = claim if isinstance(claim, tuple) else (claim,)
        about = (family, kind, row, title, arxiv, year, claims, missing, fidelity, aliases)
        entry = checked_entry(where, name, thing.__doc__, *about, thing)
        own = where.startswith(f"{PACKAGE}.") and "<locals>" not in where  # of these no two have one name: `indexed`
        taken = ENTRIES.get(name) or (None if own else indexed().get(name))
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
    claims: tuple[Claim, ...],
    missing: str,
    fidelity: Fidelity | None,
    aliases: tuple[str, ...],
    thing: Any = None,
    traits: Mapping[str, Any] = MappingProxyType({}),
) -> Entry:
    """The entry of a declaration, which is checked."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise wrong("name", repr(name), "lower-case words joined by '_'")
    kind_named(kind)
    for claim in claims:
        check(claim)
    if fidelity not in (None, *FIDELITIES):
        raise wrong("fidelity", repr(fidelity), f"one of {', '.join(FIDELITIES)}")
    if not doc:
        raise wrong(where, "no docstring", "a docstring whose first sentence says what it does")
    summary = " ".join(doc.split("\n\n")[0].split())
    return Entry(
        name, row, family, kind, title, arxiv, year, summary, claims, missing, fidelity, aliases, where, traits, thing
    )


def check(claim: Claim) -> None:
    """Raises a ValueError for a claim that nothing measures, or nothing asserts."""
    if not (claim.text and claim.cells and claim.holds):
        raise wrong("claim", repr(claim.text), "cells and holds: what is measured, and what says whether it is true")


@cache
def indexed() -> Mapping[str, Entry]:
    """Every entry of regard's own by its name, read from the source."""
    found: dict[str, Entry] = {}
    for declaration in scan(Path(__file__).parents[1], PACKAGE):
        entry = entry_of(declaration)
        if entry.name in found:
            raise wrong("name", repr(entry.name), f"a name not taken by {found[entry.name].where}")
        found[entry.name] = entry
    return MappingProxyType(found)


def entry_of(declaration: Declaration) -> Entry:
    """The entry that a declaration in the source makes."""
    given = dict(declaration.arguments)
    claim = given.pop("claim")
    claims = tuple(claim_of(told) for _, told in (claim if isinstance(claim[0], tuple) else (claim,)))
    usual = {"kind": "mechanism", "row": None, "arxiv": None, "aliases": (), "missing": "", "fidelity": None}
    about = {**usual, **given, "claims": claims}
    name = about.pop("0") if "0" in about else about.pop("name")
    return checked_entry(where=declaration.where, name=name, doc=declaration.doc, traits=declaration.traits, **about)


def claim_of(told: Mapping[str, Any]) -> Claim:
    """A claim from the arguments that the source gives it, those without a name under their numbers."""
    return Claim(**{("text", "cells", "holds")[int(k)] if k.isdigit() else k: v for k, v in told.items()})


def everything() -> dict[str, Entry]:
    """Every entry by its name: those of regard, and what else has been registered."""
    return {**indexed(), **{name: entry for name, entry in ENTRIES.items() if name not in indexed()}}


def entries(pattern: str = "*", *, kind: str | None = None, family: str | None = None) -> list[Entry]:
    """The entries, by name: those whose name or alias fits a ``pattern`` such as ``"linear*"``, of a kind, of a family.

    Raises:
        LookupError: there is no such kind, or no entry of this family; the message names those that there are.
    """
    found = [entry for _, entry in sorted(everything().items())]
    for field_name, wanted, known in (
        ("kind", kind, list(KINDS)),
        ("family", family, sorted({entry.family for entry in found})),
    ):
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
