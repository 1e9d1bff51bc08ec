"""Edits as a small JSON text: their names, heads, spans and strengths."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.core.atlas import entries
from regard.core.edit import Edit, Spans
from regard.core.errors import did_you_mean, reason, wrong
from regard.core.files import write_text
from regard.core.spec import parse

FORMAT = "regard edits 1"


def save(edits: Iterable[Edit], path: str | Path) -> None:
    """Writes edits into a file, from which `load` makes them again.

    Raises:
        TypeError: an argument that has no form in JSON. OSError: the file cannot be written.
    """
    write_text(path, dumped(edits))


def load(path: str | Path, known: Mapping[str, type[Edit]] | None = None) -> list[Edit]:
    """The edits in a file that `save` wrote.

    Args:
        known: classes that are none of regard's, by their names.

    Raises:
        OSError: it cannot be read. ValueError: it holds something else. LookupError: an unknown edit.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise wrong("path", f"{path}: {reason(error)}", "a file of edits", OSError) from error
    return loaded(text, known)


def dumped(edits: Iterable[Edit]) -> str:
    """Edits as JSON."""
    told = [{"edit": name_of(type(edit)), "arguments": plain(edit.arguments())} for edit in edits]
    return json.dumps({"format": FORMAT, "edits": told}, indent=1, ensure_ascii=False) + "\n"


def loaded(text: str, known: Mapping[str, type[Edit]] | None = None) -> list[Edit]:
    """Edits from JSON; see `load`."""
    try:
        told = json.loads(text)
        right = isinstance(told, dict) and told.get("format") == FORMAT
    except ValueError:
        told, right = None, False
    if not right or not isinstance(told, dict):
        raise wrong("text", f"{text[:40]!r}", f"JSON with the format {FORMAT!r}")
    classes = {**by_name(), **(known or {})}
    found = []
    for one in told["edits"]:
        if one["edit"] not in classes:
            offered = f"one of {', '.join(sorted(classes))}{did_you_mean(one['edit'], classes)}"
            raise wrong("edit", repr(one["edit"]), offered, LookupError)
        found.append(classes[one["edit"]](**whole(one["arguments"])))
    return found


def edit_of(text: str, keys: Spans | None = None) -> Edit:
    """The edit that a text such as ``"zero_tuning(gamma=0.6)"`` says, with ``keys`` if it takes some and names none.

    Raises:
        LookupError: no such edit. TypeError: an argument that it does not take, or one that is missing.
    """
    spec = parse(text, "edit")
    name, given = spec.name, dict(spec.arguments)
    classes = by_name()
    if name not in classes:
        offered = f"one of {', '.join(sorted(classes))}{did_you_mean(name, classes)}"
        raise wrong("edit", repr(name), offered, LookupError)
    takes = inspect.signature(classes[name]).parameters
    for argument in given:
        if argument not in takes:
            wanted = f"one of {name}'s: {', '.join(takes)}{did_you_mean(argument, takes)}"
            raise wrong(argument, "an unknown argument", wanted, TypeError)
    if keys is not None and "keys" in takes and not {"keys", "tokens"} & given.keys():
        given = {"keys": keys, **given}
    missing = [
        n for n, p in takes.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and n not in given
    ]
    if missing:
        raise wrong(missing[0], f"nothing in {text!r}", f"a value: {name} needs one", TypeError)
    return classes[name](**given)


def by_name() -> dict[str, type[Edit]]:
    """Every edit of regard's by the name in the atlas, or by that of its class where it is in none."""
    room = import_module("regard.edits")
    classes = [getattr(room, name) for name in room.__all__]
    return {name_of(thing): thing for thing in classes if isinstance(thing, type) and issubclass(thing, Edit)}


def name_of(edit: type[Edit]) -> str:
    """The name of a class of edits: that in the atlas, or else its own."""
    where = f"{edit.__module__}.{edit.__qualname__}"
    return next((entry.name for entry in entries() if entry.where == where), edit.__name__)


def plain(value: Any) -> Any:
    """A value as JSON has it; mappings, tuples, slices and tensors under a key that tells them."""
    if isinstance(value, Mapping):
        return {"map": [[plain(key), plain(held)] for key, held in value.items()]}
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop]}
    if isinstance(value, Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, range):
        return list(value)
    if isinstance(value, tuple):
        return {"tuple": [plain(part) for part in value]}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise wrong(
        "arguments", f"{value!r}, a {type(value).__name__}", "numbers, texts, lists, slices, tensors", TypeError
    )


def whole(value: Any) -> Any:
    """The value that `plain` told."""
    if isinstance(value, list):
        return [whole(part) for part in value]
    if not isinstance(value, dict):
        return value
    if "map" in value:
        return {whole(key): whole(held) for key, held in value["map"]}
    if "slice" in value:
        return slice(*value["slice"])
    if "tuple" in value:
        return tuple(whole(part) for part in value["tuple"])
    return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
