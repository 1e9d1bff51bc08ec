"""What the rows of a comparison say together: growth, predictions, a table of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regard.compare.cost import CostCell
from regard.compare.scaling import Exponent, claimed, exponent, projected

Row = Mapping[str, Any]
SETTING = (
    *("mechanism", "phase", "level", "batch", "heads", "kv_heads", "head_dim"),
    *("dtype", "threads", "device", "seed"),
)
"""The columns that rows of one curve over the lengths share."""


@dataclass(frozen=True)
class Curve:
    """The rows of one mechanism in one phase and setting, by length.

    Args:
        rows: by length, ascending. fitted: exponent of the time. claimed: that of its traits.
    """

    rows: tuple[Row, ...]
    fitted: Exponent | None
    claimed: float

    @property
    def lengths(self) -> list[int]:
        return [row["length"] for row in self.rows]

    @property
    def growth(self) -> str:
        """The fitted exponent with its 95% interval beside the claimed one, or that the lengths do not settle it."""
        claimed, fitted = f"claimed n^{self.claimed:.0f}", self.fitted
        if fitted is None:
            return claimed
        if fitted.settled:
            return f"n^{fitted.value:.2f} ± {fitted.half:.2f}, {claimed}"
        doubt = "" if fitted.half is None else f" (n^{fitted.value:.1f} ± {fitted.half:.1f})"
        return f"{claimed}; not settled by {fitted.lengths} lengths{doubt}"

    def predict(self, length: int) -> dict[str, Any]:
        """A row for a length that was not measured, marked ``predicted``; FLOPs and state bytes are the formula's.

        Raises:
            ValueError: fewer than two measured lengths.
        """
        first = self.rows[0]
        subject = cell_of(first).subject()

        def work(n: int) -> float:
            cost = subject.cost(n)
            return cost.state_bytes if first["phase"] == "decode" else cost.flops

        seconds, error = projected(self.lengths, [row["seconds"] for row in self.rows], work, length)
        theirs = [row["baseline_seconds"] for row in self.rows]
        other, _ = projected(self.lengths, theirs, baseline_work(first), length)
        cost = subject.cost(length)
        setting = {name: first[name] for name in SETTING}
        figures = {"seconds": seconds, "baseline_seconds": other, "ratio": seconds / other, "fit_error": error}
        state = cost.state_bytes if first["state_bytes"] is not None else None
        flops = None if first["phase"] == "decode" else cost.flops
        return setting | figures | {"length": length, "state_bytes": state, "flops_formula": flops, "predicted": True}


def floor_of(row: Row) -> float | None:
    """The floor of a row; None where the work was faster, so that the ceilings that were measured cannot be true."""
    floor = row.get("floor_seconds")
    return None if floor is None or floor > row["seconds"] else floor


def baseline_work(row: Row) -> Callable[[int], float]:
    """How the baseline's work grows: by the formula of `softmax` in the same setting."""
    subject = cell_of({**row, "mechanism": "softmax"}).subject()
    return lambda n: float(subject.cost(n).state_bytes if row["phase"] == "decode" else subject.cost(n).flops)


def cell_of(row: Row) -> CostCell:
    """The cell that a row is of."""
    fields: dict[str, Any] = {name: row[name] for name in (*SETTING, "length")}
    return CostCell(**fields)


def curves(rows: Iterable[Row]) -> list[Curve]:
    """The cost rows, curve by curve, in the order in which they first appear."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["kind"] == "cost":
            groups.setdefault(tuple(row[name] for name in SETTING), []).append(row)
    found = []
    for group in groups.values():
        ordered = tuple(sorted(group, key=lambda row: row["length"]))
        fitted = exponent([row["length"] for row in ordered], [row["seconds"] for row in ordered])
        first = ordered[0]
        found.append(Curve(ordered, fitted, claimed(first["time_growth"], first["phase"], first["state_growth"])))
    return found


def predictions(found: Sequence[Curve], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """`Curve.predict` for every curve and length."""
    return [curve.predict(length) for curve in found for length in lengths]
