"""Modules that know what their constructor was given."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Self

from torch import nn


class Configured(nn.Module):
    """A module that notes its constructor's arguments, for its ``repr`` and to make another of the same sizes."""

    arguments: Mapping[str, Any]  # of the constructor, as they were given

    def __new__(cls, *positional: Any, **named: Any) -> Self:
        """Notes what the constructor is given."""
        self = super().__new__(cls)
        try:
            given = inspect.signature(cls.__init__).bind(self, *positional, **named).arguments
        except TypeError:  # the constructor will say so itself; a copy is made without arguments
            given = {}
        object.__setattr__(self, "arguments", {name: value for name, value in given.items() if value is not self})
        return self
