"""From a name to a mechanism."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from regard.core.atlas import find
from regard.core.errors import a, did_you_mean, wrong
from regard.core.kinds import KINDS
from regard.core.mechanism import Mechanism

T = TypeVar("T")


def build(name: str, **config: Any) -> Mechanism:
    """The mechanism ``name`` of the atlas, with its constructor's arguments.

    Raises:
        LookupError: no such name. TypeError: an entry of another kind, whose class the message says how to get; or an
            argument that the mechanism does not take, and the message lists those it does.
    """
    return instantiate({}, name, mechanism(name), config)


def build_for(sizes: Mapping[str, int], name: str, /, **config: Any) -> Mechanism:
    """`build`, with those of ``sizes`` filled in that the constructor takes and ``config`` lacks.

    Args:
        sizes: any of heads, kv_heads, head_dim, value_dim, and layer_index, of the layer from 0. name: in the atlas.
        config: the constructor's arguments.
    """
    return instantiate(sizes, name, mechanism(name), config)


def build_part(sizes: Mapping[str, int], kind: str, text: str, known: Mapping[str, type[T]]) -> T:
    """The part that ``text``, a name with arguments, says, as `build_for` does: for mechanisms made of parts.

    Raises:
        ValueError: no such part; the message names its ``kind`` and the ``known``. TypeError: as in `build`.
    """
    try:
        name, config = parse(text)
        thing = known[name]
    except (ValueError, LookupError):
        wanted = f"one of {', '.join(known)}, or one with arguments, 'name(of=1)'"
        raise wrong(kind, repr(text), wanted + did_you_mean(text.partition("(")[0], known)) from None
    return instantiate(sizes, name, thing, config)


def mechanism(name: str) -> type[Mechanism]:
    """The class of this name in the atlas."""
    entry = find(name)
    if not (isinstance(entry.thing, type) and issubclass(entry.thing, Mechanism)):
        wanted = f"a mechanism; {KINDS[entry.kind].made_by(name)}"
        raise wrong("name", f"{name!r}, {a(entry.kind)}", wanted, TypeError)
    return entry.thing


def instantiate(sizes: Mapping[str, int], name: str, thing: type[T], config: Mapping[str, Any]) -> T:
    """An instance of ``thing``, an unknown argument refused, with those of ``sizes`` that it takes."""
    takes = arguments_of(name, thing, config)
    return thing(**{size: value for size, value in sizes.items() if size in takes} | dict(config))


def check_text(text: str) -> None:
    """Raises what `build` would of a mechanism's ``text`` with a name or an argument that there is not."""
    name, config = parse(text)
    arguments_of(name, mechanism(name), config)


def arguments_of(name: str, thing: Any, config: Mapping[str, Any]) -> list[str]:
    """What the constructor takes; raises a TypeError if ``config`` has something else."""
    takes = list(inspect.signature(thing).parameters)
    for given in config:
        if given not in takes:
            wanted = f"one of {name}'s: {', '.join(takes) or 'none'}{did_you_mean(given, takes)}"
            raise wrong(given, "an unknown argument", wanted, TypeError)
    return takes


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """``(name, config)`` of ``"window(size=64, sinks=4)"``, or of a bare ``"softmax"``: what `build` takes.

    Values are Python literals; a bare word is a string, and so is what looks like a call: ``"x(of=window(size=3))"``.

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


def written(name: str, arguments: dict[str, Any]) -> str:
    """The text that `parse` reads as these."""
    inside = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"{name}({inside})" if inside else name


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
    """The value of a literal, or the text of a bare word or call."""
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Call) else ast.literal_eval(node)
