"""Cells from functions: what a function measures, for each combination of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import Any, ClassVar, overload

from regard.experiments.cell import Cell, Report, Scalar

Measure = Callable[..., Mapping[str, Scalar]]
HERE = "regard.claims."


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
    """The cells of a function: one for each combination of arguments."""

    def __init__(self, measure: Measure, values: Mapping[str, Iterable[Scalar]]) -> None:
        self.measure = measure
        self.function = f"{measure.__module__.removeprefix(HERE)}.{measure.__name__}"
        self.cells = [self.cell(**dict(zip(values, row, strict=True))) for row in product(*values.values())]
        self.__doc__ = measure.__doc__

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
