"""Results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from regard.compare.plots import PHASES
from regard.compare.summary import SETTING, Curve, Row, floor_of

COLUMNS = ("length", "time", "ratio", "quartiles", "floor", "peak", "state", "flops")
"""Headings, which are also names of columns for SQL."""
UNITS = ((1, "s"), (1e-3, "ms"), (1e-6, "µs"))


def cost_tables(found: Sequence[Curve], predicted: Sequence[Row] = ()) -> Iterable[RenderableType]:
    """For each phase and level a heading, then for each mechanism its growth and a line for each length."""
    for phase, level in dict.fromkeys((curve.rows[0]["phase"], curve.rows[0]["level"]) for curve in found):
        yield Text(f"{phase} ({PHASES[phase]}), {level}; ratio: × PyTorch's fused attention", style="bold")
        for curve in found:
            first = curve.rows[0]
            if (first["phase"], first["level"]) == (phase, level):
                extra = [row for row in predicted if all(row[name] == first[name] for name in SETTING)]
                yield curve_table(curve, extra)


def curve_table(curve: Curve, predicted: Sequence[Row]) -> Table:
    """One mechanism in one phase."""
    title = f"{curve.rows[0]['mechanism']}: {curve.growth}"
    table = Table(title=title, title_justify="left", title_style="", header_style="dim", box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in curve.rows:
        table.add_row(*line(row))
    for row in predicted:
        table.add_row(*predicted_line(row), style="italic")
    return table


def line(row: Row) -> list[str]:
    """The cells of one measured row."""
    flops = row["flops_counted"] if row["flops_formula"] is None else row["flops_formula"]
    return [
        f"{row['length']:,}",
        duration(row["seconds"]),
        f"{row['ratio']:.2f}",
        f"{row['ratio_low']:.2f}–{row['ratio_high']:.2f}",
        floor(row),
        size(row.get("peak_bytes")),
        size(row["state_bytes"]),
        scaled(flops),
    ]


def floor(row: Row) -> str:
    """The least time, or that it is none: work that was faster than the ceilings allow shows them to be too low."""
    held = floor_of(row)
    return "above time" if held is None else duration(held)


def predicted_line(row: Row) -> list[str]:
    """The cells of one prediction, said to be one."""
    note = f"predicted ±{row['fit_error']:.0%}"
    return [f"{row['length']:,}", duration(row["seconds"]), f"{row['ratio']:.2g}", note, "", "",
            size(row["state_bytes"]), scaled(row["flops_formula"])]  # fmt: skip


def duration(seconds: float | None) -> str:
    """Three digits with their unit."""
    if seconds is None:
        return ""
    for unit, name in UNITS:
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e9:.3g} ns"


def size(count: Any) -> str:
    """Bytes with a binary unit."""
    if count is None:
        return ""
    for power, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{count / (1 << power):.3g} {name}"
    return f"{count} B"


def scaled(count: float | None) -> str:
    """A count with its decimal prefix."""
    if count is None:
        return ""
    for power, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= power:
            return f"{count / power:.3g} {name}"
    return f"{count:.0f}"
