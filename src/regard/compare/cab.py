"""Comprehensive attention benchmarking: every mechanism in four patterns of attention and two backbones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, pstdev

import torch

from regard.compare.cost import CostCell
from regard.compare.quality import QualityCell, scores
from regard.compare.summary import Row
from regard.compare.task_settings import task_setting
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.experiments.cell import Cell
from regard.networks.benchmark import BACKBONES, PATTERNS

TASKS = {
    "causal self": ("recall",),
    "noncausal self": ("masked_recall",),
    "causal cross": ("stream_lookup",),
    "noncausal cross": ("lookup",),
}
"""The tasks of each pattern."""
VANILLA = "softmax"
MECHANISMS = (
    *("window(size=16)", "lightning", "linear", "retnet", "gla", "deltanet", "gated_deltanet", "mamba2"),
    *("efficient", "agent(agents=8)"),
)
"""Ten of linear cost, which are compared if no others are named."""
LENGTHS = (256, 512, 1024, 2048, 4096)
"""At which the efficiency length is measured."""


@published(
    "cab",
    family="bench",
    kind="study",
    row=252,
    title="CAB: Comprehensive Attention Benchmarking on Long Sequence Modeling",
    arxiv="2210.07661",
    year=2022,
    aliases=("comprehensive_attention_benchmark",),
    claim=Claim(
        text="gradients of an output to later inputs are exactly zero for every causal mechanism; at least nine "
        "efficient mechanisms ranked on four patterns in two hours on a CPU; efficiency lengths repeat within 10%",
        status="works",
        figure="ten mechanisms in docs/cab.md; leaks exactly 0; lengths of six repeat within 9.0%, four by definition",
        command="regard compare --suite cab; pytest tests/claims/test_cab.py",
    ),
)
def cells(mechanisms: Sequence[str], seeds: int, preset: str, threads: int, say: Callable[[str], None]) -> list[Cell]:
    """The cells of the benchmark: tasks of four patterns in two backbones, and time at five lengths.

    What a mechanism cannot do by its traits is left out and said; its place in the index stays empty, as in the paper.

    Paper: Zhang et al., arXiv 2210.07661, whose seven tasks and eight backbones are replaced by one generated task for
    each pattern and two backbones.
    """
    found: list[QualityCell] = []
    for pattern in PATTERNS:
        for task in TASKS[pattern]:
            for name in dict.fromkeys((VANILLA, *mechanisms)):
                planned: list[QualityCell] = [
                    QualityCell(name, task, seed, preset, backbone, threads)
                    for backbone in BACKBONES
                    for seed in range(seeds)
                ]
                try:
                    planned[0].network(task_setting(task))
                except ValueError as error:
                    if not str(error).startswith("pattern"):
                        raise
                    say(f"left out: {name} on {task}: {error}")
                    continue
                found += planned
    timed = [
        CostCell(name, "train", n, heads=4, kv_heads=4, head_dim=32, threads=threads, memory=False)
        for name in mechanisms
        for n in LENGTHS
    ]
    found.sort(key=lambda cell: cell.seed)  # a run that is stopped has whole seeds
    return [*found, *timed]


@dataclass(frozen=True)
class Standing:
    """One mechanism in the benchmark.

    Args:
        mechanism: its text. scores: accuracy by pattern and backbone, None where it cannot attend so. index: mean of
            the z-scores of those that are there. efficiency: tokens from which on a training step is faster than with
            fused attention: 0 if always, None if never.
    """

    mechanism: str
    scores: Mapping[tuple[str, str], float | None]
    index: float
    efficiency: float | None


def standings(rows: Sequence[Row]) -> list[Standing]:
    """Every mechanism of the rows, the best index first."""
    patterns = {task: pattern for pattern, tasks in TASKS.items() for task in tasks}
    by_mechanism: dict[str, dict[tuple[str, str], float]] = {}
    for (task, backbone, _, mechanism), score in scores(rows).items():
        if task in patterns:
            by_mechanism.setdefault(mechanism, {})[patterns[task], backbone] = score.mean
    if not by_mechanism:
        raise wrong("rows", "no scores of the benchmark's tasks", "those of `regard compare --suite cab`")
    places = [(pattern, backbone) for pattern in PATTERNS for backbone in BACKBONES]
    z = z_scores(by_mechanism)
    found = [
        Standing(name, {place: own.get(place) for place in places}, mean(z[name].values()), efficiency(rows, name))
        for name, own in by_mechanism.items()
    ]
    return sorted(found, key=lambda standing: -standing.index)


def z_scores(scores: Mapping[str, Mapping[tuple[str, str], float]]) -> dict[str, dict[tuple[str, str], float]]:
    """Each score less the mean of all mechanisms in its place, over their standard deviation; 0 where all are equal."""
    found: dict[str, dict[tuple[str, str], float]] = {name: {} for name in scores}
    for place in {place for own in scores.values() for place in own}:
        values = {name: own[place] for name, own in scores.items() if place in own}
        spread = pstdev(values.values())
        for name, value in values.items():
            found[name][place] = (value - mean(values.values())) / spread if spread else 0.0
    return found


def efficiency(rows: Sequence[Row], mechanism: str) -> float | None:
    """`crossing` of the mechanism's training step and fused attention's, None without measurements too."""
    mine = [row for row in rows if row["kind"] == "cost" and row["mechanism"] == mechanism and row["phase"] == "train"]
    if len({row["length"] for row in mine}) < 2:
        return None
    mine = sorted(mine, key=lambda row: row["length"])
    return crossing([row["length"] for row in mine], [row["ratio"] for row in mine])


def crossing(lengths: Sequence[int], ratios: Sequence[float]) -> float | None:
    """The length from which on the ratio of times stays below one, by straight lines of log ratio over log length.

    0 if it is below one at every length; None if it is not at the last.
    """
    if ratios[-1] >= 1:
        return None
    above = [i for i, ratio in enumerate(ratios) if ratio >= 1]
    if not above:
        return 0.0
    last = above[-1]
    y0, y1 = math.log(ratios[last]), math.log(ratios[last + 1])
    x0, x1 = math.log(lengths[last]), math.log(lengths[last + 1])
    return math.exp(x0 + (x1 - x0) * y0 / (y0 - y1))


def correlations(found: Sequence[Standing]) -> dict[tuple[str, str], float | None]:
    """Of the mechanisms' scores in each pair of patterns (backbones averaged); None with fewer than three in common."""
    table = {}
    for i, first in enumerate(PATTERNS):
        for second in PATTERNS[i + 1 :]:
            pairs = [(a, b) for s in found if (a := of(s, first)) is not None and (b := of(s, second)) is not None]
            table[first, second] = correlation(pairs)
    return table


def of(standing: Standing, pattern: str) -> float | None:
    """The mean of a mechanism's scores in one pattern."""
    values = [score for (name, _), score in standing.scores.items() if name == pattern and score is not None]
    return mean(values) if values else None


def correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's; None for fewer than three pairs or where one side does not vary."""
    if len(pairs) < 3:
        return None
    xs, ys = zip(*pairs, strict=True)
    spread = pstdev(xs) * pstdev(ys)
    return mean((x - mean(xs)) * (y - mean(ys)) for x, y in pairs) / spread if spread else None


def leak(mechanism: Mechanism, n: int = 37, heads: int = 2, dim: int = 6) -> float:
    """The largest gradient of any output to any later input: zero for what is causal.

    Inputs are q, k, v and all signals; n² gradients are taken, so keep n small.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {name: normal(1, heads, n, dim) for name in ("q", "k", "v")}
    for name, spec in mechanism.signals.items():
        inputs[name] = spec.within(normal(1, spec.rows(heads, heads), n, *spec.size(dim, dim)))
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    out, worst = mechanism.double()(**leaves, layout=Layout(causal=True)), 0.0
    for t in range(n - 1):
        found = torch.autograd.grad(out[:, :, t].sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
        later = [gradient[:, :, t + 1 :].abs().max().item() for gradient in found if gradient is not None]
        worst = max(worst, *later)
    return worst


def markdown(found: Sequence[Standing]) -> str:
    """The standings and correlations as tables."""
    places = [(pattern, backbone) for pattern in PATTERNS for backbone in BACKBONES]
    head = ["mechanism", "index", *(f"{pattern}, {backbone}" for pattern, backbone in places), "efficiency length"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for s in found:
        marks = ["–" if s.scores[place] is None else f"{s.scores[place]:.1%}" for place in places]
        beyond = "never" if s.efficiency is None else "always" if s.efficiency == 0 else f"{s.efficiency:,.0f}"
        last = "the baseline" if s.mechanism == VANILLA else beyond
        lines.append("| " + " | ".join([f"`{s.mechanism}`", f"{s.index:+.2f}", *marks, last]) + " |")
    lines += ["", "| patterns | correlation of scores |", "|---|---|"]
    for (first, second), value in correlations(found).items():
        lines.append(f"| {first}, {second} | {'too few in common' if value is None else f'{value:+.2f}'} |")
    return "\n".join(lines) + "\n"
