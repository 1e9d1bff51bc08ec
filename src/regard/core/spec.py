"""The text grammar of layers, mechanisms, projections and parts: names with arguments, and where each of them stands.

    layers  = layer ("," layer)*                        softmax*2, window(size=64) with nexus(order=2)
    layer   = item ["with" item] ["*" count]            a mechanism, a projection, how many
    item    = name ["(" name=value ("," name=value)* ")"]

A value is a Python literal; a bare word is a string, and so is what looks like an item or a pattern:
``composed(bias=t5(buckets=8))``, ``pattern(of=Window(64) | Sinks(4))``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from regard.core.deprecated import former
from regard.core.errors import wrong

FORMS = {
    "layers": "mechanisms, with a projection and times a count where wanted: 'softmax*2, window(size=64) with gates'",
    "mechanism": "a name, or a name with arguments such as 'window(size=64, sinks=4)'",
}
"""How each kind of text looks; other kinds are like a mechanism."""


@dataclass(frozen=True)
class Spec:
    """A name with arguments, such as ``window(size=64)``.

    Args:
        text: what it was read from. places: from "name", the kind of text that it is, and each argument to its first
            letter in the text and the one behind its last.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    text: str = field(default="", compare=False, repr=False)
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)

    @former("Spec.name and Spec.arguments")
    def __iter__(self) -> Iterator[Any]:
        """``name, arguments = parse(text)``, as in 0.1."""
        return iter((self.name, self.arguments))

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())
        return f"{self.name}({inside})" if inside else self.name

    @contextmanager
    def underlined(self) -> Iterator[None]:
        """Errors from inside that begin with an argument, the kind, or ``name`` get it underlined where it stands."""
        try:
            yield
        except (ValueError, TypeError, LookupError) as error:
            about = str(error.args[0]) if error.args else ""
            named = [
                self.places[word] for word in re.split(r", *", about.partition(": got ")[0]) if word in self.places
            ]
            if not named or "\n" in about:
                raise
            raise type(error)(about + underline(self.text, *named)) from error


@dataclass(frozen=True)
class Layer:
    """A mechanism with its projection, None for the network's own."""

    mechanism: Spec
    projection: Spec | None = None

    def __str__(self) -> str:
        return str(self.mechanism) if self.projection is None else f"{self.mechanism} with {self.projection}"


def underline(text: str, *places: tuple[int, int]) -> str:
    """Two lines for the end of a message: the text, and marks under parts of it, on one line if it has several."""
    marks = [" "] * (max(last for _, last in places) + 1)
    for first, last in places:
        marks[first : max(last, first + 1)] = "^" * max(last - first, 1)
    return f"\n  {' '.join(text.splitlines())}\n  {''.join(marks).rstrip()}"


def parse(text: str, kind: str = "mechanism") -> Spec:
    """``"window(size=64, sinks=4)"``, or a bare ``"softmax"``, as a name with arguments.

    Raises:
        ValueError: the text is none; the message names its ``kind`` and underlines where it goes wrong.
    """
    return item(text, 0, len(text), kind)


def parse_layer(text: str, kind: str = "mechanism") -> Layer:
    """``"softmax with nexus(order=2)"``, or a mechanism alone.

    Raises:
        ValueError: as in `parse`.
    """
    return layer(text, 0, len(text), kind)


def parse_layers(text: str) -> list[Layer]:
    """One `parse_layer` for each layer of ``"softmax*2, window(size=64) with nexus*3"``.

    Raises:
        ValueError: as in `parse`; or a count that is not above zero.
    """
    found = []
    for first, last in places_outside(text, ","):
        count, end = 1, last
        if times := re.search(r"\*([^*()]*)$", text[first:last]):
            end = first + times.start()
            if not times[1].strip().isdigit() or int(times[1]) < 1:
                raise fault("layers", text, "no count above zero", end, last)
            count = int(times[1])
        found += [layer(text, first, end, "layers")] * count
    return found


def layer(text: str, first: int, last: int, kind: str) -> Layer:
    """The layer that stands in this part of a text."""
    for start, _ in places_outside(text[first:last], " with "):
        if start:
            middle = first + start - len(" with ")
            return Layer(item(text, first, middle, kind), item(text, first + start, last, "projection"))
    return Layer(item(text, first, last, kind))


def item(text: str, first: int, last: int, kind: str) -> Spec:
    """The name with arguments that stands in this part of a text."""
    whole = text[first:last]
    first += len(whole) - len(whole.lstrip())
    own = whole.strip()
    if not own:
        raise fault(kind, text, "nothing", first, last)
    try:
        tree = ast.parse(own, mode="eval").body
    except SyntaxError as error:
        at = first + min(max((error.offset or 1) - 1, 0), len(own) - 1)
        raise fault(kind, text, f"{own!r} ({error.msg})", at, at + 1) from None
    if isinstance(tree, ast.Name):
        return Spec(tree.id, {}, text, dict.fromkeys((kind, "name"), (first, first + len(own))))
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise fault(kind, text, repr(own), first, first + len(own))
    if tree.args:
        raise fault(kind, text, "an argument without a name", *(first + place for place in span(own, tree.args[0])))
    arguments: dict[str, Any] = {}
    places = dict.fromkeys((kind, "name"), (first, first + len(tree.func.id)))
    for keyword in tree.keywords:
        start, end = (first + place for place in span(own, keyword))
        if keyword.arg is None or keyword.arg in arguments:
            raise fault(kind, text, f"{text[start:end]!r}", start, end)
        places[keyword.arg] = start, end
        try:
            arguments[keyword.arg] = literal(keyword.value)
        except ValueError:
            begin = first + span(own, keyword.value)[0]
            raise fault(kind, text, f"{text[begin:end]!r}, no value", begin, end) from None
    return Spec(tree.func.id, arguments, text, places)


def span(text: str, node: Any) -> tuple[int, int]:
    """Where a node of the tree of a text of one line begins and ends, in letters."""
    lines = [len(line) for line in text.encode().splitlines(keepends=True)]
    ends = ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
    first, last = (sum(lines[: line - 1]) + column for line, column in ends)
    return len(text.encode()[:first].decode()), len(text.encode()[:last].decode())


def fault(kind: str, text: str, came: str, first: int, last: int) -> Exception:
    """The error about the part of a text from ``first`` to ``last``."""
    return wrong(kind, came, FORMS.get(kind, FORMS["mechanism"]) + underline(text, (first, last)))


def split_outside(text: str, mark: str) -> list[str]:
    """The parts of ``text`` between those ``mark`` that stand outside of brackets."""
    return [text[first:last] for first, last in places_outside(text, mark)]


def places_outside(text: str, mark: str) -> list[tuple[int, int]]:
    """Where these parts begin and end."""
    borders, depth = [0], 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and text.startswith(mark, place) and place >= borders[-1]:
            borders += [place, place + len(mark)]
    borders.append(len(text))
    return list(zip(borders[::2], borders[1::2], strict=True))


def literal(node: ast.expr) -> Any:
    """The value of a literal, or the text of a bare word, a call or a pattern made of several."""
    joined = isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd)
    return ast.unparse(node) if joined or isinstance(node, ast.Name | ast.Call) else ast.literal_eval(node)
