"""The page of a comparison: one HTML file that works offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regard.compare.plots import frontier
from regard.compare.quality import pareto
from regard.compare.summary import curves, floor_of, predictions
from regard.core.errors import wrong
from regard.core.files import write_text
from regard.web.page import assets, document

HIDDEN = {"key", "command", "kind", "ceiling_flops", "ceiling_bytes", "regard", "torch", "python", "machine", "gpu"}
"""Columns that the page's table leaves out; the last of them stand below it."""


def write_results_page(rows: Sequence[Mapping[str, Any]], targets: Sequence[int], target: Path) -> None:
    """Writes the page of these rows, with predictions for the lengths ``targets``.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise wrong("folder", "no rows", "results of `regard compare`")
    write_text(target, results_page(rows, targets))


def results_page(rows: Sequence[Mapping[str, Any]], targets: Sequence[int]) -> str:
    """The whole page."""
    script, style = assets("results")
    return document("comparison · regard", script, style, {"results": payload(rows, targets)})


def payload(rows: Sequence[Mapping[str, Any]], targets: Sequence[int]) -> dict[str, Any]:
    """What the page is drawn from."""
    found, points = curves(rows), pareto(rows)
    tasks = dict.fromkeys(point["task"] for point in points)
    best = {task: frontier([point for point in points if point["task"] == task]) for task in tasks}
    origins = dict.fromkeys(
        f"regard {row['regard']}, PyTorch {row['torch']}, Python {row['python']}; {row['machine']}"
        + (f"; {row['gpu']}" if row["gpu"] else "")
        for row in rows
    )
    return {
        "cost": [shown(row) for row in rows if row["kind"] == "cost"],
        "quality": [shown(row) for row in rows if row["kind"] == "quality"],
        "predicted": predictions(found, targets),
        "points": points,
        "best": {task: [point["mechanism"] for point in front] for task, front in best.items()},
        "growth": [
            {
                **{name: curve.rows[0][name] for name in ("mechanism", "phase", "level")},
                "said": curve.growth,
            }
            for curve in found
        ],
        "origin": "Measured with " + " and ".join(origins) + ".",
    }


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that the table shows; a floor above the measured time is none."""
    row = row if row["kind"] != "cost" else {**row, "floor_seconds": floor_of(row)}
    return {name: value for name, value in row.items() if name not in HIDDEN and value is not None}
