"""The page of what is reproduced: a row an entry, from the committed results."""

from __future__ import annotations

from collections.abc import Sequence

from regard.core.atlas import Entry

COMMAND = "make claims"
HEAD = f"""# What is reproduced

Written by `{COMMAND}` from the committed results; do not edit. *System* says whether all of the paper's method is
built, and what shows that it is the paper's; *claim* whether what the paper says was measured and
holds at the scale of two cores. `regard claims NAME` measures one anew, `regard claims` says which were measured before
a change of the code.

| entry | system | claim | says | came out | measured |
|---|---|---|---|---|---|
"""


def markdown(found: Sequence[Entry]) -> str:
    """The page."""
    return HEAD + "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row(entry))} |\n" for entry in found
    )


def row(entry: Entry) -> tuple[str, ...]:
    """The cells of an entry's line."""
    claim = entry.claim
    system = f"part: {entry.missing}" if entry.missing else "complete"
    status = claim.status if claim.status == "reproduced" else f"**{claim.status}**"
    system = f"{system} ({entry.fidelity})" if entry.fidelity else system
    return f"`{entry.name}`", system, status, claim.text, claim.figure, claim.date
