"""The sizes of an attention layer: of its hidden states, and of its heads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, TypeVar

from regard.core.deprecated import warn
from regard.core.errors import wrong

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Sizes:
    """Width of the hidden states, number of heads, and dimensions of a head.

    Args:
        width: of the hidden states. heads: of the queries, h. kv_heads: of keys and values, g, a divisor of h.
        head_dim: of queries and keys, d. value_dim: of values, e.

    Raises:
        ValueError: ``kv_heads`` does not divide ``heads``, or a size is below one.
    """

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int

    def __post_init__(self) -> None:
        for name in NAMES:
            if getattr(self, name) < 1:
                raise wrong(name, str(getattr(self, name)), "at least 1")
        if self.heads % self.kv_heads:
            raise wrong("kv_heads", str(self.kv_heads), f"a divisor of the {self.heads} heads")

    @classmethod
    def even(cls, width: int, heads: int) -> Sizes:
        """Multi-head attention whose heads share the width: g = h, d = e = width / h.

        Raises:
            ValueError: ``heads`` does not divide ``width``, or a size is below one.
        """
        if heads < 1 or width % heads:
            raise wrong("heads", str(heads), f"a divisor of the width {width}")
        return cls(width, heads, heads, width // heads, width // heads)


NAMES = tuple(field.name for field in fields(Sizes))


def takes_sizes(thing: Callable[..., Any]) -> bool:
    """Whether the ``sizes`` that a class or function takes are these, not those that another module calls so."""
    function = inspect.unwrap(thing.__init__ if isinstance(thing, type) else thing)
    told = getattr(function, "__annotations__", {}).get("sizes")
    return told is Sizes or (isinstance(told, str) and getattr(function, "__globals__", {}).get(told) is Sizes)


def gathered(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with one ``sizes`` in the place of those that `Sizes` has."""
    sizes = Sizes(**{name: arguments[name] for name in NAMES if name in arguments})
    return {"sizes": sizes} | {name: value for name, value in arguments.items() if name not in NAMES}


def sizes_apart(constructor: F) -> F:
    """Lets a constructor's ``sizes`` be given as in 0.1, each size an argument of its own, which warns. Until 0.3."""
    if not takes_sizes(constructor):
        return constructor
    _, one, *own = inspect.signature(constructor).parameters.values()
    apart = inspect.Signature([*(one.replace(name=name) for name in NAMES), *own])

    @wraps(constructor)
    def call(self: Any, *positional: Any, **named: Any) -> None:
        if isinstance(positional[0], int) if positional else not named.keys().isdisjoint(NAMES):
            name = type(self).__name__
            warn(f"{name}(width, …)", f"{name}(Sizes(width, …))")
            constructor(self, **gathered(apart.bind(*positional, **named).arguments))
        else:
            constructor(self, *positional, **named)

    return call  # pyright: ignore[reportReturnType]
