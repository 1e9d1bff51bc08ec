"""What changes a model more or less, by one number that can be turned to nothing."""

from __future__ import annotations

from copy import copy
from typing import ClassVar, Self

from regard.core.errors import wrong


class Dialled:
    """The base of what has a dial, or may have one."""

    dial: ClassVar[tuple[str, float] | None] = None
    """``(name, value)`` of the number that says how much it changes, and its value at which that is nothing."""
    called: ClassVar[str] = "one"
    """What it is called where it is refused: "an edit"."""

    @property
    def idle(self) -> bool:
        """Whether it changes nothing anywhere, as at strength 0."""
        return self.dial is not None and getattr(self, self.dial[0]) == self.dial[1]

    def at(self, value: float) -> Self:
        """The same with its `dial` at another value.

        Raises:
            TypeError: it has none.
        """
        if self.dial is None:
            raise wrong("value", str(value), f"{self.called} with a dial: {type(self).__name__} has none", TypeError)
        other = copy(self)
        setattr(other, self.dial[0], value)
        return other
