"""What came out of claims, read from the committed results: one file for each entry, as `regard claims` writes it.

``{"claims": [{"cells", "holds", "held", "figure", "command", "date"}], "rows": […], "sources": {…}}``: a claim is known
by its cells and the code that asserts it; ``rows`` are figures of cells, ``sources`` say of which state of the code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from regard.core.sources import changed

Status = Literal["reproduced", "partly", "not reproduced", "not measured"]

RESULTS = Path(__file__).parents[1] / "results"
"""Where the committed results lie, one JSON file for each entry."""


class Declared(Protocol):
    """A claim as it is declared."""

    @property
    def text(self) -> str: ...
    @property
    def cells(self) -> str: ...
    @property
    def holds(self) -> str: ...


@dataclass(frozen=True)
class Result:
    """What came out of the claims of one entry.

    Args:
        text: what is claimed. status: "reproduced" where all of it was measured and holds, "partly" where some does,
            "not reproduced" where nothing that was measured does, "not measured" where nothing was.
        figure: what came out. command: what measured it. date: when, the oldest.
        sources: what `core.sources.used` said of the code that was measured, for each cell. former: measured before
         there were cells.
    """

    text: str
    status: Status
    figure: str
    command: str
    date: str
    sources: Sequence[Mapping[str, str]] = field(default=(), repr=False)
    former: bool = False

    @cached_property
    def stale(self) -> str:
        """What has been changed since, empty where nothing has: "measured before a change of core.layout"."""
        if self.former:
            return "measured before it was written as cells"
        modules = sorted({name for known in self.sources for name in changed(known)})
        shown = ", ".join(modules[:3]) + (f" and {len(modules) - 3} more" if len(modules) > 3 else "")
        return f"measured before a change of {shown}" if modules else ""

    def as_dict(self) -> dict[str, str]:
        """Plain data, for JSON."""
        told = {name: getattr(self, name) for name in ("text", "status", "figure", "command", "date")}
        return told | {"stale": self.stale}


def result_of(name: str, claims: Sequence[Declared], page: Mapping[str, Any] | None = None) -> Result:
    """The result of the entry ``name``, which makes these claims, from its file of the committed ones, or ``page``."""
    text = "; ".join(claim.text for claim in claims)
    page = read(name) if page is None else page
    found = {(told["cells"], told["holds"]): told for told in page["claims"]}
    measured = [found[claim.cells, claim.holds] for claim in claims if (claim.cells, claim.holds) in found]
    if not measured:
        return Result(text, "not measured", "", f"regard claims {name}", "")
    held = [told["held"] for told in measured]
    status: Status = "partly" if any(held) else "not reproduced"
    status = "reproduced" if all(held) and len(held) == len(claims) else status
    figure = "; ".join(told["figure"] if told["held"] else f"not reproduced: {told['figure']}" for told in measured)
    commands = "; ".join(dict.fromkeys(told["command"] for told in measured))
    sources = tuple(page["sources"].values())
    former = any(told.get("former") for told in measured)
    return Result(text, status, figure, commands, min(told["date"] for told in measured), sources, former)


@cache
def read(name: str) -> dict[str, Any]:
    """The committed results of an entry, empty where there are none."""
    return load(RESULTS / f"{name}.json")


def load(file: Path) -> dict[str, Any]:
    """The results in a file."""
    empty: dict[str, Any] = {"claims": [], "rows": [], "sources": {}}
    return empty | (json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})
