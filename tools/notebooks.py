"""Runs the notebooks of the documentation and writes what their cells print below them.

python tools/notebooks.py [PAGE …]        without pages: all of docs/notebooks

A notebook is a Markdown page, which Jupyter opens through Jupytext: its ``python`` blocks are cells that run one after
the other, what a cell prints stands in the ``output`` block behind it, and it may save a picture that the page shows.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
CELL = re.compile(r"^```python\n(.*?)^```\n(?:\n```output\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?")


def executed(text: str, name: str) -> str:
    """The page with the output of each cell below it. Cells run where the process is, and save pictures there."""
    names: dict[str, object] = {}

    def run(cell: re.Match[str]) -> str:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(cell[1], name, "exec"), names)
        shown = f"\n```output\n{said.getvalue().rstrip()}\n```\n" if said.getvalue().strip() else ""
        return f"```python\n{cell[1]}```\n{shown}"

    return CELL.sub(run, text)


def differences(text: str, other: str) -> list[str]:
    """Lines of two pages that differ by more than one in the last digit of a number, or in any word."""
    pairs = zip(text.splitlines(), other.splitlines(), strict=False)
    found = [f"{a!r} is now {b!r}" for a, b in pairs if not alike(a, b)]
    counts = [len(page.splitlines()) for page in (text, other)]
    return found + ([f"{counts[0]} lines are now {counts[1]}"] if counts[0] != counts[1] else [])


def alike(line: str, other: str) -> bool:
    """Whether two lines say the same; rounding may go either way on another machine."""
    if NUMBER.sub("#", line).split() != NUMBER.sub("#", other).split():
        return False
    return all(
        abs(value(a) - value(b)) <= 1.01 * unit(a) for a, b in zip(*map(NUMBER.findall, (line, other)), strict=True)
    )


def value(number: str) -> float:
    """What a printed number is."""
    return float(number.replace(",", ""))


def unit(number: str) -> float:
    """One in the last digit of a number with a point; numbers without one are exact."""
    _, _, digits = number.partition(".")
    return 10.0 ** -len(digits) if digits else 0.0


def pictures(text: str) -> Iterator[str]:
    """The files that a page shows."""
    yield from re.findall(r"^!\[[^]]*\]\((\S+)\)", text, re.MULTILINE)


def main() -> None:
    matplotlib.use("agg")
    pages = [Path(page).resolve() for page in sys.argv[1:]] or sorted(FOLDER.glob("*.md"))
    os.chdir(FOLDER)
    for page in pages:
        page.write_text(executed(page.read_text(encoding="utf-8"), page.name), encoding="utf-8")
        print(f"{page.name} is written")


if __name__ == "__main__":
    main()
