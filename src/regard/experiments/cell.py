"""A cell: one thing to measure, complete in itself, with a name that stays the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

Scalar = str | int | float | bool | None
Report = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """The base of every cell: its fields say what is measured, `run` measures it.

    A cell can be pickled and run in any process; nothing but its fields decides what is measured.
    """

    kind: ClassVar[str]

    @property
    def fields(self) -> dict[str, Scalar]:
        """What the cell is, as it stands in its row of the results."""
        return asdict(self)

    @property
    def key(self) -> str:
        """16 hexadecimal digits from the kind and the fields: the same in every process and on every machine."""
        text = json.dumps([self.kind, self.fields], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def code(self) -> tuple[str, str]:
        """Module and name of what measures it."""
        return type(self).__module__, type(self).__qualname__

    @property
    def label(self) -> str:
        """What progress shows."""
        return " ".join(str(value) for value in self.fields.values() if value is not None)

    def run(self, report: Report = lambda what: None) -> Mapping[str, Scalar]:
        """The figures. ``report`` is told what is done at the moment."""
        raise NotImplementedError

    def run_on(self, shared: Any, report: Report = lambda what: None) -> Mapping[str, Scalar]:
        """The figures of a cell that is not complete in itself: ``shared`` is what all cells of a run work on."""
        raise NotImplementedError
