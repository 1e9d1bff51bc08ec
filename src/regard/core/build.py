"""From a name to a mechanism."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from typing import Any

from regard.core.atlas import find
from regard.core.errors import wrong
from regard.core.mechanism import Mechanism


def build(name: str, **config: Any) -> Mechanism:
    """The mechanism ``name`` of the atlas, with its constructor's arguments.

    Raises:
        LookupError: no such name. TypeError: an argument that it does not take; the message lists those it does.
    """
    entry = find(name)
    if not (isinstance(entry.thing, type) and issubclass(entry.thing, Mechanism)):
        raise wrong("name", f"{name!r}, a {entry.kind}", "a mechanism", TypeError)
    parameters = inspect.signature(entry.thing).parameters
    for given in config:
        if given not in parameters:
            raise wrong(given, "an unknown argument", f"one of {name}'s: {', '.join(parameters) or 'none'}", TypeError)
    return entry.thing(**config)


def build_for(sizes: Mapping[str, int], name: str, /, **config: Any) -> Mechanism:
    """`build`, with those of ``sizes`` (heads, head_dim) filled in that the constructor takes and ``config`` lacks."""
    thing = find(name).thing
    takes = inspect.signature(thing).parameters if isinstance(thing, type) else ()
    return build(name, **{size: value for size, value in sizes.items() if size in takes} | config)


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """``(name, config)`` of ``"window(size=64, sinks=4)"``, or of a bare ``"softmax"``: what `build` takes.

    Values are Python literals; a bare word is a string.

    Raises:
        ValueError: the text is not a name with keyword arguments.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            return tree.func.id, {keyword.arg or "**": literal(keyword.value) for keyword in tree.keywords}
    except (SyntaxError, ValueError):
        pass
    raise wrong("mechanism", repr(text), "a name, or a name with arguments such as 'window(size=64, sinks=4)'")


def parse_layers(text: str) -> list[tuple[str, dict[str, Any]]]:
    """One `parse` for each layer of ``"softmax*2, window(size=64)*3"``.

    Raises:
        ValueError: a part is neither a mechanism nor a mechanism times a count above zero.
    """
    layers = []
    for part in split_outside(text, ","):
        what, _, times = part.rpartition("*") if part.rstrip()[-1:].isdigit() and "*" in part else (part, "", "1")
        if not times.strip().isdigit() or int(times) < 1:
            raise wrong("layers", repr(part.strip()), "a mechanism, or one times a count, such as 'softmax*2'")
        layers += [parse(what)] * int(times)
    return layers


def split_outside(text: str, mark: str) -> list[str]:
    """The parts of ``text`` between those ``mark`` that stand outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def literal(node: ast.expr) -> Any:
    """The value of a literal, or the name itself of a bare word."""
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
