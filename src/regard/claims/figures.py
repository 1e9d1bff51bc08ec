"""The figures of measured cells, and how they are told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for a bidirectional 95% interval, by degrees of freedom from 1."""


@dataclass(frozen=True)
class Finding:
    """What ``holds`` says.

    Args:
        figure: what came out, in words and numbers. held: whether the claim's text is true of it.
    """

    figure: str
    held: bool

    @classmethod
    def of(cls, figure: str, *conditions: bool) -> Finding:
        """Held where every condition is met."""
        return cls(figure, all(bool(condition) for condition in conditions))


class Figures:
    """The rows of a claim's cells, in the order of the cells: their fields and what they measured."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self.rows = list(rows)

    def __call__(self, figure: str, **where: Any) -> list[Any]:
        """The values of a figure in all rows whose fields are these.

        Raises:
            LookupError: no row has these fields.
        """
        found = [row[figure] for row in self.rows if all(row.get(name) == value for name, value in where.items())]
        if not found:
            raise LookupError(f"no row has {where}")
        return found

    def one(self, figure: str, **where: Any) -> Any:
        """The only such value.

        Raises:
            LookupError: there is none, or more than one.
        """
        found = self(figure, **where)
        if len(found) > 1:
            raise LookupError(f"{len(found)} rows have {where}")
        return found[0]

    def mean(self, figure: str, **where: Any) -> float:
        """The mean of such values."""
        return mean(self(figure, **where))

    def by(self, field: str, figure: str, **where: Any) -> dict[Any, list[Any]]:
        """Such values for each value of a field, in the order of the rows."""
        return {value: self(figure, **where | {field: value}) for value in dict.fromkeys(self(field, **where))}


def listed(values: Iterable[Any], form: str = ".3g") -> str:
    """All values: ``"1.2%, 1.4%"``."""
    return ", ".join(format(value, form) for value in values)


def interval(values: Sequence[float], form: str = ".3f") -> str:
    """The mean and half of its 95% interval by Student's t: ``"1.740 ± 0.020"``; one value alone as it is."""
    if len(values) < 2:
        return format(values[0], form)
    return f"{format(mean(values), form)} ± {format(half_width(values), form)}"


def half_width(values: Sequence[float]) -> float:
    """Half of the 95% interval of the mean by Student's t, of two to ten values."""
    return STUDENT[len(values) - 2] * stdev(values) / len(values) ** 0.5
