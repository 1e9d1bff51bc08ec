"""Cells run one after another or on many machines, each committed when it is finished."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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


@dataclass(frozen=True)
class Shared:
    """What all cells work on, such as a model: each worker of a cluster is sent it once.

    Args:
        thing: given to `Cell.run_on`. gpus: that a worker needs for it.
    """

    thing: Any
    gpus: int = 0


def run(
    cells: Sequence[Cell],
    store: Rows | None,
    command: str,
    again: bool = False,
    workers: str = LOCAL,
    show: Show = lambda what: None,
    shared: Shared | None = None,
) -> Iterator[Outcome]:
    """Measures what is not in the store yet, and commits each row at once; yields as cells end.

    A cell that fails is reported with its error and leaves no row, the others go on.

    Args:
        cells: what to measure. store: where to keep it; None keeps nothing. command: noted in each row.
        again: measure and replace rows that are there. workers: "local" for this process, "ray" or "ray:ADDRESS" for
            a Ray cluster. show: told what is done at the moment. shared: what `Cell.run_on` of the cells is given; None
            for cells that are complete in themselves.

    Raises:
        ValueError: an unknown kind of workers. ModuleNotFoundError: Ray is wanted and not installed.
    """
    todo = [cell for cell in cells if again or store is None or not store.done(cell)]
    waiting = {cell.key for cell in todo}
    yield from (Outcome(cell, reused=True) for cell in cells if cell.key not in waiting)
    kind, address = parsed(workers)
    for outcome in in_turn(todo, show, shared) if kind == LOCAL else on_ray(todo, address, show, shared):
        if store is not None and outcome.figures is not None:
            try:
                store.add(outcome.cell, outcome.figures, command)
            except ValueError as error:  # figures that the store does not take
                outcome = Outcome(outcome.cell, error=str(error))
        yield outcome


def parsed(workers: str) -> tuple[str, str]:
    """The kind of workers, and the address of a cluster.

    Raises:
        ValueError: an unknown kind. ModuleNotFoundError: Ray is wanted and not installed.
    """
    kind, _, address = workers.partition(":")
    if kind not in (LOCAL, RAY) or (kind == LOCAL and address):
        raise wrong("--workers", repr(workers), "local, ray or ray:ADDRESS")
    if kind == RAY and find_spec("ray") is None:
        wanted = "local, or pip install 'regard[ray]'"
        raise wrong("--workers", "ray, which is not installed", wanted, ModuleNotFoundError)
    return kind, address


def in_turn(cells: Sequence[Cell], show: Show, shared: Shared | None = None) -> Iterator[Outcome]:
    """In this process."""
    for cell in cells:
        show(cell.label)
        yield attempt(cell, show, shared)


def attempt(cell: Cell, show: Show = lambda what: None, shared: Shared | None = None) -> Outcome:
    """One cell; what it raises is its outcome."""
    try:
        return Outcome(cell, dict(cell.run(show) if shared is None else cell.run_on(shared.thing, show)))
    except (ValueError, TypeError, LookupError, RuntimeError, MemoryError, OSError, ImportError) as error:
        return Outcome(cell, error=" ".join(str(error).split()) or type(error).__name__)


def on_ray(cells: Sequence[Cell], address: str, show: Show, shared: Shared | None = None) -> Iterator[Outcome]:
    """On a Ray cluster; as cells end, in any order."""
    with cluster(f"{RAY}:{address}"):
        yield from as_tasks(cells, show) if shared is None else by_holders(cells, show, shared)


@contextmanager
def cluster(workers: str) -> Iterator[None]:
    """One Ray cluster for all runs in a ``with`` block, begun unless there is one; nothing for local workers."""
    kind, address = parsed(workers)
    if kind == LOCAL:
        yield
        return
    import ray

    begun = not ray.is_initialized()
    if begun:
        ray.init(address=address or None, log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        if begun:
            ray.shutdown()


def as_tasks(cells: Sequence[Cell], show: Show) -> Iterator[Outcome]:
    """Each cell with as many cores as it has threads."""
    import ray

    remote: Any = ray.remote(attempt)
    pending = {remote.options(**needs(cell)).remote(cell): cell for cell in cells}
    while pending:
        show(left(len(pending)))
        for reference in ray.wait(list(pending), num_returns=1, timeout=5)[0]:
            yield ended(reference, pending.pop(reference))


class Holder:
    """A worker that keeps what all cells share."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared

    def attempt(self, cell: Cell) -> Outcome:
        return attempt(cell, shared=self.shared)


def by_holders(cells: Sequence[Cell], show: Show, shared: Shared) -> Iterator[Outcome]:
    """By as many holders as there are cores, or GPUs where they need one; each has one cell at a time."""
    import ray

    what, each = ("GPU", shared.gpus) if shared.gpus else ("CPU", 1)
    places = max(1, int(ray.cluster_resources().get(what, 1)) // each)
    make: Any = ray.remote(Holder)
    make = make.options(num_cpus=1, num_gpus=shared.gpus, max_restarts=3, max_task_retries=1)
    kept, waiting, pending = ray.put(shared), deque(cells), dict[Any, tuple[Cell, Any]]()
    idle = [make.remote(kept) for _ in range(min(places, len(cells)))]
    while waiting or pending:
        while waiting and idle:
            cell, holder = waiting.popleft(), idle.pop()
            pending[holder.attempt.remote(cell)] = cell, holder
        show(left(len(waiting) + len(pending)))
        for reference in ray.wait(list(pending), num_returns=1, timeout=5)[0]:
            cell, holder = pending.pop(reference)
            idle.append(holder)
            yield ended(reference, cell)


def ended(reference: Any, cell: Cell) -> Outcome:
    """How a cell ended on the cluster; what the cluster itself reports is its error."""
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(reference)
    except RayError as error:
        return Outcome(cell, error=" ".join(str(error).split())[:300])


def left(count: int) -> str:
    """What progress says."""
    import ray

    return f"{count} cells left on {len(ray.nodes())} node(s)"


def needs(cell: Cell) -> dict[str, int]:
    """What Ray sets aside for a cell."""
    fields = cell.fields
    return {"num_cpus": int(fields.get("threads") or 1), "num_gpus": int(fields.get("device") == "cuda")}
