"""From a name to a mechanism."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from regard.core.atlas import find
from regard.core.errors import a, did_you_mean, wrong
from regard.core.kinds import KINDS
from regard.core.mechanism import Mechanism
from regard.core.sizes import NAMES, Sizes, gathered, takes_sizes
from regard.core.spec import Spec, parse

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


def build_text(text: str | Spec, sizes: Mapping[str, int] = MappingProxyType({}), **config: Any) -> Mechanism:
    """The mechanism of a text such as ``"window(size=64)"``, with ``config`` over its arguments, as `build_for` does.

    Raises:
        ValueError, LookupError, TypeError: no such text, name or argument; the message underlines the faulty part.
    """
    spec = parse(text) if isinstance(text, str) else text
    with spec.underlined():
        return build_for(sizes, spec.name, **{**spec.arguments, **config})


def build_part(sizes: Mapping[str, int], kind: str, text: str, known: Mapping[str, type[T]]) -> T:
    """The part that ``text``, a name with arguments, says, as `build_for` does: for mechanisms made of parts.

    Raises:
        ValueError: no such part; the message names its ``kind`` and the ``known``. TypeError: as in `build`.
    """
    spec = parse(text, kind)
    if spec.name not in known:
        wanted = f"one of {', '.join(known)}, or one with arguments, 'name(of=1)'"
        raise wrong(kind, repr(text), wanted + did_you_mean(spec.name, known))
    with spec.underlined():
        return instantiate(sizes, spec.name, known[spec.name], spec.arguments)


def mechanism(name: str) -> type[Mechanism]:
    """The class of this name in the atlas."""
    entry = find(name)
    if not (isinstance(entry.thing, type) and issubclass(entry.thing, Mechanism)):
        wanted = f"a mechanism; {KINDS[entry.kind].made_by(name)}"
        raise wrong("name", f"{name!r}, {a(entry.kind)}", wanted, TypeError)
    return entry.thing


def instantiate(sizes: Mapping[str, int], name: str, thing: type[T], config: Mapping[str, Any]) -> T:
    """An instance of ``thing``, an unknown argument refused, with those of ``sizes`` that it takes, or as `Sizes`."""
    takes = arguments_of(name, thing, config)
    given = {size: value for size, value in sizes.items() if size in takes} | dict(config)
    return thing(**(gathered(given) if sizes and takes_sizes(thing) else given))


def check_spec(spec: Spec) -> None:
    """Raises what `build_text` would of a name or an argument that there is not."""
    with spec.underlined():
        arguments_of(spec.name, mechanism(spec.name), spec.arguments)


def arguments_of(name: str, thing: Any, config: Mapping[str, Any]) -> list[str]:
    """What the constructor takes, each size by its own name; raises a TypeError if ``config`` has something else."""
    declared = inspect.signature(thing).parameters
    takes = [*NAMES, *(name for name in declared if name != "sizes")] if takes_sizes(thing) else list(declared)
    for given in config:
        if given not in takes and not (given in declared and isinstance(config[given], Sizes)):
            wanted = f"one of {name}'s: {', '.join(takes) or 'none'}{did_you_mean(given, takes)}"
            raise wrong(given, "an unknown argument", wanted, TypeError)
    return takes
