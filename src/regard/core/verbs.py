"""The verbs that make a thing of the atlas by its name: one for each kind whose verb is named like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regard.core.atlas import find
from regard.core.build import instantiate
from regard.core.errors import a, wrong
from regard.core.kinds import KINDS


def maker(kind: str) -> Callable[..., Any]:
    """The function ``(name, **config)`` that makes things of a kind, as `regard.build` does mechanisms."""

    def make(name: str, /, **config: Any) -> Any:
        entry = find(name)
        if entry.kind != kind:
            raise wrong(
                "name", f"{name!r}, {a(entry.kind)}", f"{a(kind)}; {KINDS[entry.kind].made_by(name)}", TypeError
            )
        return instantiate({}, name, entry.thing, config)

    make.__name__ = make.__qualname__ = kind
    make.__doc__ = f"""The {kind} ``name`` of the atlas, with its arguments. {KINDS[kind].meaning}

    Raises:
        LookupError: no such name. TypeError: an entry of another kind, or an argument that this one does not take.
    """
    return make
