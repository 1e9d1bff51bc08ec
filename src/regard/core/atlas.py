"""The atlas: every published thing that regard holds, declared beside its code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from regard.core.errors import did_you_mean, wrong

Status = Literal["works", "partly", "not reproduced"]
T = TypeVar("T")

STATUSES = ("works", "partly", "not reproduced")
STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "by",
        "for",
        "from",
        "how",
        "in",
        "is",
        "it",
        "of",
        "on",
        "or",
        "that",
        "the",
        "this",
        "to",
        "which",
        "with",
    ]
)


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
        family, kind: the shelf it stands on, and what it is (mechanism, kernel, probe …).
        title, arxiv, year: the paper. summary: what it does, one sentence. claim: what is reproduced.
        thing: the class or function itself.
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
    thing: Any = field(default=None, compare=False, repr=False)

    @property
    def url(self) -> str | None:
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("thing", "claim")}
        return plain | {
            "url": self.url,
            "claim": asdict(self.claim),
            "where": f"{self.thing.__module__}.{self.thing.__qualname__}",
        }


ENTRIES: dict[str, Entry] = {}


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

    Raises:
        ValueError: the name is taken or ill-formed, the status unknown, or the docstring missing.
    """

    def register(thing: T) -> T:
        if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
            raise wrong("name", repr(name), "lower-case words joined by '_'")
        if name in ENTRIES:
            raise wrong("name", repr(name), f"a name not taken by {ENTRIES[name].thing}")
        if claim.status not in STATUSES:
            raise wrong("claim.status", repr(claim.status), f"one of {STATUSES}")
        if not thing.__doc__:
            raise wrong(f"{thing}", "no docstring", "a docstring whose first sentence says what it does")
        summary = " ".join(thing.__doc__.split("\n\n")[0].split())
        ENTRIES[name] = Entry(name, row, family, kind, title, arxiv, year, summary, claim, aliases, thing)
        return thing

    return register


def entries() -> list[Entry]:
    """Every entry, by name."""
    return [ENTRIES[name] for name in sorted(ENTRIES)]


def words(text: str) -> list[str]:
    """The text's words in lower case, without those that carry no meaning, cut to a common stem."""
    found = re.findall(r"[a-z0-9]+", text.lower())
    return [stem(word) for word in found if word not in STOP_WORDS]


def stem(word: str) -> str:
    """A crude English stem: enough that ``decaying``, ``decayed`` and ``decays`` meet."""
    for suffix in (
        "ations",
        "ation",
        "ings",
        "ing",
        "ers",
        "er",
        "ies",
        "ed",
        "es",
        "s",
        "ity",
        "al",
        "ally",
        "ive",
        "e",
    ):
        if word.endswith(suffix) and len(word) - len(suffix) >= 4:
            return word[: -len(suffix)]
    return word


def search(query: str, among: Iterable[Entry] | None = None) -> list[Entry]:
    """The entries that share words with ``query``, best first: a hit in the name counts most, then the title."""
    wanted = words(query)
    scored = [(relevance(entry, wanted), entry) for entry in (entries() if among is None else among)]
    return [entry for score, entry in sorted(scored, key=lambda pair: (-pair[0], pair[1].name)) if score > 0]


def relevance(entry: Entry, wanted: list[str]) -> float:
    """How well the entry answers the stems ``wanted``: the sum over fields of weight × share of stems found."""
    fields = {
        4.0: f"{entry.name.replace('_', ' ')} {' '.join(entry.aliases)}",
        2.0: entry.title,
        1.0: f"{entry.summary} {entry.family} {entry.kind}",
    }
    score = 0.0
    for weight, text in fields.items():
        stems = words(text)
        score += weight * sum(any(have.startswith(want) or want.startswith(have) for have in stems) for want in wanted)
    return score / max(len(wanted), 1)


def find(name: str) -> Entry:
    """The entry of this name or alias.

    Raises:
        LookupError: no such entry; the message names the nearest.
    """
    for entry in ENTRIES.values():
        if name == entry.name or name in entry.aliases:
            return entry
    meant = did_you_mean(name, [*ENTRIES, *(alias for entry in ENTRIES.values() for alias in entry.aliases)])
    near = [entry.name for entry in search(name)[:3]]
    such = f", such as {', '.join(near)}" if near else ""
    raise wrong("name", repr(name), f"one of the atlas{such}; `regard atlas` lists all{meant}", LookupError)
