"""Patterns as text: ``Window(64) | Sinks(4)``."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from regard.core.errors import did_you_mean, wrong
from regard.core.spec import span, underline
from regard.patterns import grid, line, named
from regard.patterns.base import Pattern, PerHead
from regard.patterns.rounded import RoundedRadial

NAMES: dict[str, Callable[..., Pattern]] = {
    thing.__name__: thing
    for thing in (
        *(line.Causal, line.Window, line.Trailing, line.Dilated, line.Strided, line.Power, line.Sinks, line.GlobalKeys),
        *(line.GlobalQueries, line.Global, line.Blocks, line.Before, line.Segments, line.Parts, line.Random),
        *(named.attention_tiles, named.inward_window, named.fused_view_time, named.all_to_first, named.chunked),
        *(named.part_attention, named.isolation, named.Nearby, named.Transposed),
        *(grid.Neighborhood, grid.Tiles, grid.GridTokens, grid.Same, grid.Plane, grid.Radial, RoundedRadial, PerHead),
    )
}
"""What may be named in a text."""


def parse_pattern(text: str | Pattern) -> Pattern:
    """The pattern that ``text`` describes: names of `NAMES` with literal arguments, joined by ``&``, ``|``, ``~`` and
    brackets; a pattern is returned as it is.

    Raises:
        ValueError: the text is none, or an argument does not fit. TypeError: it is neither text nor a pattern.
    """
    if isinstance(text, Pattern):
        return text
    if not isinstance(text, str):
        hint = (
            "a Pattern, or its text such as 'Window(64) | Sinks(4)'; a mask of pairs is for each call: Layout(mask=…)"
        )
        raise wrong("pattern", f"a {type(text).__name__}", hint, TypeError)
    text = text.strip()
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise refused(text) from error
    return built(tree, text)


def built(node: ast.expr, text: str) -> Pattern:
    """The pattern of one part of the text."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        first, second = built(node.left, text), built(node.right, text)
        return first & second if isinstance(node.op, ast.BitAnd) else first | second
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return ~built(node.operand, text)
    if isinstance(node, ast.Name) and node.id in NAMES:
        node = ast.Call(node, [], [])
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in NAMES:
        raise refused(text, node.func if isinstance(node, ast.Call) else node)

    def value(part: ast.expr) -> Any:
        try:
            return ast.literal_eval(part)
        except ValueError:
            return built(part, text)

    arguments = [value(part) for part in node.args]
    named = {keyword.arg or "**": value(keyword.value) for keyword in node.keywords}
    try:
        return NAMES[node.func.id](*arguments, **named)
    except TypeError as error:
        raise wrong(node.func.id, ast.unparse(node), f"arguments that it takes: {error}") from error


def refused(text: str, part: ast.expr | None = None) -> Exception:
    """The error for a text that is no pattern, its faulty part underlined where that is known."""
    wanted = f"such as 'Window(64) | Sinks(4)', of {', '.join(NAMES)}"
    if part is None or "\n" in text:
        return wrong("pattern", repr(text), wanted)
    came = text[slice(*span(text, part))]
    return wrong("pattern", repr(came), wanted + did_you_mean(came, NAMES) + underline(text, span(text, part)))
