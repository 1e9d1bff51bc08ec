"""Cells run one after another or on many machines, each committed when it is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

from regard.core.errors import wrong
from regard.experiments.cell import Cell, Scalar

Show = Callable[[str], None]
LOCAL, RAY = "local", "ray"


class Rows(Protocol):
    """Where rows are kept: `Store`, or another that knows what is done."""

    def done(self, cell: Cell) -> bool:
        """Whether the cell's row is there."""
        ...

    def add(self, cell: Cell, figures: Mapping[str, Scalar], command: str) -> None:
        """Commits the row of a finished cell."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Args:
        cell: which. figures: its row, None if it failed. error: why it failed. reused: whether its row was there.
    """

    cell: Cell
    figures: Mapping[str, Scalar] | None = None
    error: str | None = None
    reused: bool = False


def run(
    cells: Sequence[Cell],
    store: Rows | None,
    command: str,
    again: bool = False,
    workers: str = LOCAL,
    show: Show = lambda what: None,
) -> Iterator[Outcome]:
    """Measures what is not in the store yet, and commits each row at once; yields as cells end.

    A cell that fails is reported with its error and leaves no row, the others go on.

    Args:
        cells: what to measure. store: where to keep it; None keeps nothing. command: noted in each row.
        again: measure and replace rows that are there. workers: "local" for this process, "ray" or "ray:ADDRESS" for
            a Ray cluster. show: told what is done at the moment.

    Raises:
        ValueError: an unknown kind of workers. ModuleNotFoundError: Ray is wanted and not installed.
    """
    todo = [cell for cell in cells if again or store is None or not store.done(cell)]
    waiting = {cell.key for cell in todo}
    yield from (Outcome(cell, reused=True) for cell in cells if cell.key not in waiting)
    kind, _, address = workers.partition(":")
    if kind not in (LOCAL, RAY) or (kind == LOCAL and address):
        raise wrong("--workers", repr(workers), "local, ray or ray:ADDRESS")
    for outcome in in_turn(todo, show) if kind == LOCAL else on_ray(todo, address, show):
        if store is not None and outcome.figures is not None:
            try:
                store.add(outcome.cell, outcome.figures, command)
            except ValueError as error:  # figures that the store does not take
                outcome = Outcome(outcome.cell, error=str(error))
        yield outcome


def in_turn(cells: Sequence[Cell], show: Show) -> Iterator[Outcome]:
    """In this process."""
    for cell in cells:
        show(cell.label)
        yield attempt(cell, show)


def attempt(cell: Cell, show: Show = lambda what: None) -> Outcome:
    """One cell; what it raises is its outcome."""
    try:
        return Outcome(cell, dict(cell.run(show)))
    except (ValueError, TypeError, LookupError, RuntimeError, MemoryError, OSError, ImportError) as error:
        return Outcome(cell, error=" ".join(str(error).split()) or type(error).__name__)


def on_ray(cells: Sequence[Cell], address: str, show: Show) -> Iterator[Outcome]:
    """On a Ray cluster, each cell with as many cores as it has threads; as they end, in any order."""
    if find_spec("ray") is None:
        wanted = "local, or pip install 'regard[ray]'"
        raise wrong("--workers", "ray, which is not installed", wanted, ModuleNotFoundError)
    import ray
    from ray.exceptions import RayError

    begun = not ray.is_initialized()
    if begun:
        ray.init(address=address or None, log_to_driver=False, configure_logging=False)
    try:
        remote: Any = ray.remote(attempt)
        pending = {remote.options(**needs(cell)).remote(cell): cell for cell in cells}
        while pending:
            show(f"{len(pending)} cells left on {len(ray.nodes())} node(s)")
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=5)
            for reference in ready:
                cell = pending.pop(reference)
                try:
                    yield ray.get(reference)
                except RayError as error:
                    yield Outcome(cell, error=" ".join(str(error).split())[:300])
    finally:
        if begun:
            ray.shutdown()


def needs(cell: Cell) -> dict[str, int]:
    """What Ray sets aside for a cell."""
    fields = cell.fields
    return {"num_cpus": int(fields.get("threads") or 1), "num_gpus": int(fields.get("device") == "cuda")}
