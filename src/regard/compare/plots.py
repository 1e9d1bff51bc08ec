"""Results as pictures: cost over length, quality over cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regard.compare.summary import Curve, Row
from regard.core.errors import wrong
from regard.core.files import write_whole

PHASES = {"prefill": "one pass", "train": "forward and backward", "decode": "one more token"}
FORMATS = (".png", ".svg")


def plot_cost(found: Sequence[Curve], predicted: Sequence[Row], target: Path) -> None:
    """Time over length, both logarithmic, a panel for each phase and level, as PNG or SVG by the name of ``target``.

    Bands are the quartiles of the rounds; open points are predictions; the dashed line is fused attention.
    """
    plt = pyplot(target)
    panels = list(dict.fromkeys((curve.rows[0]["phase"], curve.rows[0]["level"]) for curve in found))
    if not panels:
        raise wrong("folder", "no cost rows", "results of `regard compare` with lengths")
    names = dict.fromkeys(curve.rows[0]["mechanism"] for curve in found)
    colours = {name: f"C{index % 10}" for index, name in enumerate(names)}
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.6), squeeze=False, layout="constrained")
    for axis, (phase, level) in zip(axes[0], panels, strict=True):
        here = [curve for curve in found if (curve.rows[0]["phase"], curve.rows[0]["level"]) == (phase, level)]
        beyond = [row for row in predicted if (row["phase"], row["level"]) == (phase, level)]
        draw_panel(axis, here, beyond, colours)
        axis.set(title=f"{PHASES[phase]} ({level})", xlabel="tokens", ylabel="seconds", yscale="log")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda n, _: short(n))
        axis.grid(True, which="major", alpha=0.3)
        axis.legend(fontsize=8, frameon=False)
    first = found[0].rows[0]
    figure.suptitle(
        f"{first['heads']} heads of {first['head_dim']}, {first['dtype']}, {first['threads']} thread(s)", fontsize=10
    )
    write_whole(target, lambda draft: figure.savefig(draft, dpi=150))
    plt.close(figure)


def draw_panel(axis: Any, found: Sequence[Curve], predicted: Sequence[Row], colours: Mapping[str, str]) -> None:
    """The curves of one phase."""
    baseline: dict[int, list[float]] = {}
    for curve in found:
        rows, colour = curve.rows, colours[curve.rows[0]["mechanism"]]
        label, seconds = f"{rows[0]['mechanism']}  {curve.growth}", [row["seconds"] for row in rows]
        axis.plot(curve.lengths, seconds, "o-", color=colour, label=label)
        low = [row["baseline_seconds"] * row["ratio_low"] for row in rows]
        high = [row["baseline_seconds"] * row["ratio_high"] for row in rows]
        axis.fill_between(curve.lengths, low, high, color=colour, alpha=0.15, linewidth=0)
        mine = [row for row in predicted if row["mechanism"] == rows[0]["mechanism"]]
        beyond = [(row["length"], row["seconds"]) for row in mine]
        if beyond:
            joined = [(rows[-1]["length"], rows[-1]["seconds"]), *beyond]
            axis.plot(*zip(*joined, strict=True), ":", color=colour)
            axis.plot(*zip(*beyond, strict=True), "o", color=colour, mfc="white")
        for row in rows:
            baseline.setdefault(row["length"], []).append(row["baseline_seconds"])
    lengths = sorted(baseline)
    middle = [sorted(baseline[n])[len(baseline[n]) // 2] for n in lengths]
    axis.plot(lengths, middle, "k--", linewidth=1, label="fused attention (PyTorch)")


def plot_pareto(points: Sequence[Row], target: Path) -> None:
    """Quality over cost: a point for each mechanism with its interval, joined along the best of them.

    ``points`` have mechanism, task, score, score_low, score_high and cost (seconds of a training token).
    """
    plt = pyplot(target)
    if not points:
        raise wrong("folder", "no quality rows", "results of `regard compare` with tasks")
    tasks = list(dict.fromkeys(point["task"] for point in points))
    figure, axes = plt.subplots(1, len(tasks), figsize=(5.2 * len(tasks), 4.6), squeeze=False, layout="constrained")
    for axis, task in zip(axes[0], tasks, strict=True):
        here = sorted((point for point in points if point["task"] == task), key=lambda point: point["cost"])
        for index, point in enumerate(here):
            errors = [[point["score"] - point["score_low"]], [point["score_high"] - point["score"]]]
            axis.errorbar(point["cost"], point["score"], yerr=errors, fmt="o", color=f"C{index % 10}", capsize=3)
            place = (point["cost"], point["score"])
            axis.annotate(point["mechanism"], place, (5, 4), textcoords="offset points", fontsize=8)
        best = frontier(here)
        axis.plot([point["cost"] for point in best], [point["score"] for point in best], "k-", alpha=0.3, linewidth=1)
        axis.set(title=task, xlabel="microseconds per training token", ylabel="accuracy", xscale="log")
        axis.grid(True, alpha=0.3)
    write_whole(target, lambda draft: figure.savefig(draft, dpi=150))
    plt.close(figure)


def frontier(points: Sequence[Row]) -> list[Row]:
    """The points, by rising cost, that no cheaper one equals."""
    best: list[Row] = []
    for point in sorted(points, key=lambda point: (point["cost"], -point["score"])):
        if not best or point["score"] > best[-1]["score"]:
            best.append(point)
    return best


def pyplot(target: Path) -> Any:
    """Matplotlib, drawing to files only."""
    if target.suffix not in FORMATS:
        raise wrong("--plot", repr(target.name), f"a name that ends in {' or '.join(FORMATS)}")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def short(n: float) -> str:
    """A length as people write it."""
    for size, unit in ((1 << 20, "m"), (1 << 10, "k")):
        if n >= size:
            return f"{n / size:g}{unit}"
    return f"{n:g}"
