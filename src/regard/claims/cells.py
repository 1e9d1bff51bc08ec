"""Cells from functions: what a function measures, for each combination of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import Any, ClassVar, overload

from regard.core.errors import wrong
from regard.experiments.cell import Cell, Report, Scalar

Measure = Callable[..., Mapping[str, Scalar]]
HERE = "regard.claims."
OWN = frozenset(("key", "cell", "function", "command", "date", "with", "sources"))
"""What a row of results is told beside arguments and figures."""


@dataclass(frozen=True)
class Measured(Cell):
    """A cell whose figures a function of the claims gives.

    Args:
        function: ``"module.name"`` below `regard.claims`. given: its arguments.
    """

    kind: ClassVar[str] = "claim"
    function: str
    given: tuple[tuple[str, Scalar], ...] = ()

    @property
    def fields(self) -> dict[str, Scalar]:
        return {"function": self.function, **dict(self.given)}

    @property
    def code(self) -> tuple[str, str]:
        module, _, name = f"{HERE}{self.function}".rpartition(".")
        return module, name

    def run(self, report: Report = lambda what: None) -> Mapping[str, Scalar]:
        module, name = self.code
        return getattr(import_module(module), name).measure(**dict(self.given))


class Cells(Sequence[Cell]):
    """The cells of a function: one for each combination of arguments.

    Args:
        measure: the function. values: of its arguments. without: those that take away what is claimed to matter; what
            is said to hold of the cells must not hold of these (`null`). fewer: those of a look in a second (`quick`).
    """

    def __init__(
        self,
        measure: Measure,
        values: Mapping[str, Iterable[Scalar]],
        without: Mapping[str, Iterable[Scalar]] | None = None,
        fewer: Mapping[str, Iterable[Scalar]] | None = None,
    ) -> None:
        for name in OWN & values.keys():
            raise wrong(name, "an argument of cells", f"another name: a row has {', '.join(sorted(OWN))} of its own")
        self.measure = measure
        self.values = {name: tuple(given) for name, given in values.items()}
        self.without, self.fewer = without, fewer
        self.function = f"{measure.__module__.removeprefix(HERE)}.{measure.__name__}"
        self.cells = [self.cell(**dict(zip(values, row, strict=True))) for row in product(*self.values.values())]
        self.__doc__ = measure.__doc__

    def where(self, **given: Iterable[Scalar]) -> Cells:
        """The cells with these values of some arguments in the place of their own."""
        for name in given.keys() - self.values.keys():
            raise wrong(name, "no argument of these cells", f"one of {', '.join(self.values)}", TypeError)
        return Cells(self.measure, {**self.values, **given}, self.without, self.fewer)

    @property
    def nulls(self) -> Cells | None:
        """The cells without what is claimed to matter; None where nothing is named."""
        return None if self.without is None else self.where(**self.without)

    @property
    def few(self) -> Cells:
        """The cells of a look in a second: all of them where nothing is named."""
        return self.where(**(self.fewer or {}))

    def cell(self, **given: Scalar) -> Measured:
        """The cell of these arguments."""
        return Measured(self.function, tuple(given.items()))

    @overload
    def __getitem__(self, place: int) -> Cell: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Cell]: ...
    def __getitem__(self, place: Any) -> Any:
        return self.cells[place]

    def __len__(self) -> int:
        return len(self.cells)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)


def measured(**values: Iterable[Scalar]) -> Callable[[Measure], Cells]:
    """Makes cells of the function below it, which returns its figures: ``@measured(order=(1, 2), seed=range(3))``."""
    return lambda measure: Cells(measure, values)


def null(**without: Iterable[Scalar]) -> Callable[[Cells], Cells]:
    """Names, above `measured`, the values of arguments that take away what is claimed to matter."""
    return lambda cells: Cells(cells.measure, cells.values, without, cells.fewer)


def quick(**fewer: Iterable[Scalar]) -> Callable[[Cells], Cells]:
    """Names, above `measured`, the values of arguments for a look in a second."""
    return lambda cells: Cells(cells.measure, cells.values, cells.without, fewer)
