"""Arguments and attributes under the names that they had in 0.1, which warn. Until 0.3."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])


def warn(old: str, new: str) -> None:
    """Warns the caller's caller that ``old`` is ``new`` now."""
    warnings.warn(f"{old} is now {new}; the old name goes in 0.3", DeprecationWarning, 3)


def former(new: str) -> Callable[[F], F]:
    """Marks a method that is there only for callers from before: it warns, and no figure is taken to depend on it."""

    def decorate(method: F) -> F:
        @wraps(method)
        def call(self: Any, *positional: Any, **named: Any) -> Any:
            warn(f"{type(self).__name__}.{method.__name__}", new)
            return method(self, *positional, **named)

        return call  # pyright: ignore[reportReturnType]

    return decorate


def renamed_argument(old: str, new: str) -> Callable[[F], F]:
    """Lets a function's argument ``new`` be given by its former name as well.

    A function that still declares ``old``, as a subclass outside of regard may, is given it by that name.
    """

    def decorate(function: F) -> F:
        declared = inspect.signature(function).parameters
        takes = old if old in declared and new not in declared else new

        @wraps(function)
        def call(*positional: Any, **named: Any) -> Any:
            if old in named:
                warn(f"{old}=", f"{new}=")
            for given in (new, old):  # the old one last: `dataclasses.replace` gives the field of today as well
                if given in named:
                    named[takes] = named.pop(given)
            return function(*positional, **named)

        return call  # pyright: ignore[reportReturnType]

    return decorate


def renamed_field(old: str, new: str) -> Callable[[C], C]:
    """Lets a dataclass's field ``new`` be given and read by its former name as well."""

    def read(self: Any) -> Any:
        warn(f"{type(self).__name__}.{old}", new)
        return getattr(self, new)

    def decorate(kind: C) -> C:
        kind.__init__ = renamed_argument(old, new)(kind.__init__)
        setattr(kind, old, property(read))
        return kind

    return decorate
