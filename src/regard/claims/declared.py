"""From the texts of a declaration to cells and to the code that says whether the claim holds."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from regard.claims.figures import Figures, Finding
from regard.core.atlas import Claim
from regard.core.build import literal
from regard.core.errors import wrong
from regard.experiments.cell import Cell


def cells_of(claim: Claim) -> list[Cell]:
    """The cells that a claim names.

    Raises:
        ValueError: nothing of this name, or no cells.
    """
    thing, given = named("claim.cells", claim.cells)
    found = thing(**given) if callable(thing) else thing
    cells = [found] if isinstance(found, Cell) else list(found if isinstance(found, Iterable) else [])
    if not cells or not all(isinstance(cell, Cell) for cell in cells):
        raise wrong("claim.cells", repr(claim.cells), "a list of cells, a class of cells, or a function that gives one")
    return cells


def finding_of(claim: Claim, figures: Figures) -> Finding:
    """What the claim's ``holds`` says of its figures."""
    thing, given = named("claim.holds", claim.holds)
    return thing(figures, **given)


def named(what: str, text: str) -> tuple[Any, dict[str, Any]]:
    """What ``"module.name"`` or ``"module.name(argument=1)"`` names below `regard.claims`, and the arguments.

    Raises:
        ValueError: it names nothing.
    """
    path, given = split(what, text)
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(f"regard.claims.{module}"), name), given
    except (ImportError, AttributeError) as error:
        raise wrong(what, repr(text), f"'module.name' of something below regard.claims ({error})") from error


def split(what: str, text: str) -> tuple[str, dict[str, Any]]:
    """The dotted name and the arguments by keyword, of which a bare word is a text."""
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        tree = None
    match tree:
        case ast.Attribute():
            return ast.unparse(tree), {}
        case ast.Call(func=ast.Attribute() as path, args=[], keywords=keywords):
            return ast.unparse(path), {keyword.arg or "**": literal(keyword.value) for keyword in keywords}
    raise wrong(what, repr(text), "'module.name', or one with arguments by keyword, 'module.name(of=1)'")
