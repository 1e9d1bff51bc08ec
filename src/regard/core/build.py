"""From a name to a mechanism."""

from __future__ import annotations

import inspect
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
