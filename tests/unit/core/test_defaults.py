"""What everything takes and what it is when nothing is said: a change here changes what users get, and is one for the
changelog. `python tests/unit/core/test_defaults.py` writes the table anew."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

import regard
from regard.core import atlas

TABLE = Path(__file__).with_name("defaults.json")


def things() -> dict[str, object]:
    """Everything in the atlas that is made by its name, and the verbs."""
    verbs = {f"regard.{name}": getattr(regard, name) for name in regard.__all__}
    return verbs | {entry.name: entry.thing for entry in atlas.entries()}


def told(thing: object) -> dict[str, str]:
    """The arguments of one, each with its default, empty where there is none."""
    taken = inspect.signature(thing).parameters.values()  # type: ignore[arg-type]
    return {each.name: "" if each.default is each.empty else as_text(each.default) for each in taken}


def as_text(default: object) -> str:
    """A default without the address at which a function lies."""
    return getattr(default, "__qualname__", repr(default))


@pytest.fixture(scope="module")
def known() -> dict[str, dict[str, str]]:
    return json.loads(TABLE.read_text())


def test_arguments_and_defaults_are_those_of_the_table(known):
    assert {name: told(thing) for name, thing in things().items()} == known


if __name__ == "__main__":
    found = {name: told(thing) for name, thing in things().items()}
    TABLE.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in found.items()) + "\n}\n")
