"""How good a mechanism is: equal small models, trained alike on a task, and tested on what they have not seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Generator, Tensor, nn

from regard.compare.parsing import parted
from regard.compare.scaling import student
from regard.compare.summary import Row
from regard.compare.task_settings import TRIALS, TaskSetting, task_setting
from regard.core.build import parse, split_outside
from regard.core.errors import wrong
from regard.experiments.cell import Cell, Report, Scalar
from regard.networks.benchmark import BACKBONES, Backbone, BenchmarkNetwork
from regard.networks.lm import Config
from regard.tasks import batch
from regard.tasks.lookup import NOTHING
from regard.train.fit import Recipe, fit

TEST_SEED = 7_919
"""Test examples are drawn from this seed, the same for every model; training uses the cell's."""


@dataclass(frozen=True)
class Preset:
    """Sizes of models and of training: ``width``, ``heads``, ``depth``, ``steps``, ``batch``, ``tests``, ``rate``."""

    width: int
    heads: int
    depth: int
    steps: int
    batch: int
    tests: int
    rate: float = 3e-3


PRESETS = {
    "smoke": Preset(32, 2, 2, 40, 16, 64),
    "small": Preset(64, 2, 2, 1000, 32, 512),
    "medium": Preset(128, 4, 4, 4000, 64, 1024, 1e-3),
}


@dataclass(frozen=True)
class QualityCell(Cell):
    """One model with one mechanism, trained on one task.

    Args:
        mechanism: its text, in every layer, or ``"softmax with nexus(order=2)"`` to name a projection. task: a name of
            `TRIALS`, with arguments if wanted. seed: of weights and data. preset: of `PRESETS`. backbone: of
            `BACKBONES`. threads: of the CPU.
    """

    kind: ClassVar[str] = "quality"
    mechanism: str
    task: str
    seed: int = 0
    preset: str = "small"
    backbone: Backbone = "sequential"
    threads: int = 1

    def __post_init__(self) -> None:
        for name, allowed in (("preset", tuple(PRESETS)), ("backbone", BACKBONES)):
            if getattr(self, name) not in allowed:
                raise wrong(name, repr(getattr(self, name)), f"one of {', '.join(allowed)}")
        if parse(self.task)[0] not in TRIALS:
            raise wrong("task", repr(self.task), f"one of {', '.join(TRIALS)}")

    def network(self, given: TaskSetting) -> BenchmarkNetwork:
        """The model, its gated networks widened or narrowed until it has the parameters of one with softmax, to 1%.

        Raises:
            ValueError: a mechanism that cannot attend in the task's pattern.
        """
        sizes = PRESETS[self.preset]

        def made(config: Config) -> BenchmarkNetwork:
            return BenchmarkNetwork(config, given.pattern, self.backbone, self.seed)

        def count(config: Config) -> int:
            return made(config).parameter_count

        plain = Config(given.vocabulary, sizes.width, f"softmax*{sizes.depth}", sizes.heads)
        mechanism, projection = parted(self.mechanism)
        layers = f"{mechanism}*{sizes.depth}"
        mine = Config(given.vocabulary, sizes.width, layers, sizes.heads, projection=projection)
        return made(mine.fitted(count(plain), count))

    def run(self, report: Report = lambda what: None) -> Mapping[str, Scalar]:
        torch.set_num_threads(self.threads)
        given, sizes = task_setting(self.task), PRESETS[self.preset]
        network, begun = self.network(given), time.perf_counter()
        recipe = Recipe(sizes.steps, sizes.rate, seed=self.seed + 1)

        def loss(model: nn.Module, generator: Generator) -> Tensor:
            logits, targets = answered(model, given.task, given, generator, sizes.batch)
            return F.cross_entropy(logits, targets)

        def told(step: int, value: float) -> None:
            if step % 20 == 0:
                report(f"{self.label}: step {step} of {sizes.steps}, loss {value:.3f}")

        fit(network, loss, recipe, report=told)
        seconds = time.perf_counter() - begun
        return {
            **{"parameters": network.parameter_count, "steps": sizes.steps, "seconds": seconds},
            **{"tokens": sizes.steps * sizes.batch * given.length, "length": given.length, "chance": given.chance},
            **{"pattern": given.pattern, **tested(network, given, sizes)},
        }


@torch.no_grad()
def tested(network: nn.Module, given: TaskSetting, sizes: Preset) -> dict[str, Scalar]:
    """Accuracy, loss and number of answers on held-out examples."""
    generator, hits, losses = Generator().manual_seed(TEST_SEED), [], []
    for _ in range(0, sizes.tests, sizes.batch):
        logits, targets = answered(network, given.tested, given, generator, sizes.batch)
        hits.append((logits.argmax(-1) == targets).float())
        losses.append(F.cross_entropy(logits, targets, reduction="none"))
    found, nats = torch.cat(hits), torch.cat(losses)
    return {"accuracy": found.mean().item(), "loss": nats.mean().item(), "answers": found.numel()}


def answered(model: nn.Module, task: Any, given: TaskSetting, generator: Generator, size: int) -> tuple[Tensor, Tensor]:
    """``(logits (answers, vocabulary), targets (answers,))`` of a batch, as the pattern shows it to the model."""
    if given.pattern.endswith("cross"):
        examples = [task.sample(generator, given.length) for _ in range(size)]
        context, queries, targets = (
            torch.stack([getattr(example, name) for example in examples]) for name in ("context", "queries", "targets")
        )
        asked = targets != NOTHING
        return cast(Any, model)(queries, context)[asked], targets[asked]
    ids, answers = batch(task, generator, size, given.length)
    if given.pattern == "causal self":
        return model(ids[:, :-1])[answers[:, 1:]], ids[:, 1:][answers[:, 1:]]
    return model(ids.masked_fill(answers, given.vocabulary - 1))[answers], ids[answers]


def plan(
    names: Sequence[str], tasks: str, seeds: int, preset: str, threads: int, say: Callable[[str], None]
) -> list[Cell]:
    """The cells of all mechanisms on ``tasks`` (names with commas, or "all"), without those that cannot attend so."""
    wanted = list(TRIALS) if tasks == "all" else [task.strip() for task in split_outside(tasks, ",")]
    cells: list[Cell] = []
    for task in wanted:
        given = task_setting(task)
        for name in names:
            planned = [QualityCell(name, task, seed, preset, threads=threads) for seed in range(seeds)]
            try:
                planned[0].network(given)
            except ValueError as error:
                if not str(error).startswith("pattern"):
                    raise
                say(f"left out: {name} on {task}: {error}")
                continue
            cells += planned
    return cells


@dataclass(frozen=True)
class Score:
    """The accuracy of one mechanism on one task.

    Args:
        mean: over the seeds. low, high: a 95% interval, over seeds by Student's t; of a single seed that of its
            answers, which says nothing of other seeds. seeds: how many. cost: microseconds per training token.
    """

    mean: float
    low: float
    high: float
    seeds: int
    cost: float


def score(rows: Sequence[Row]) -> Score:
    """Of the rows of all seeds."""
    values, cost = [row["accuracy"] for row in rows], mean(1e6 * row["seconds"] / row["tokens"] for row in rows)
    middle = mean(values)
    if len(values) > 1:
        half = student(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    else:
        half = 1.96 * math.sqrt(middle * (1 - middle) / rows[0]["answers"])
    return Score(middle, max(0.0, middle - half), min(1.0, middle + half), len(values), cost)


def scores(rows: Iterable[Row]) -> dict[tuple[str, str, str, str], Score]:
    """By task, backbone, preset and mechanism, in the order in which they first appear."""
    found: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        if row["kind"] == "quality":
            found.setdefault((row["task"], row["backbone"], row["preset"], row["mechanism"]), []).append(row)
    return {key: score(group) for key, group in found.items()}


def pareto(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Points for `plots.plot_pareto`."""
    return [
        {
            **{"task": f"{task} ({backbone}, {preset})", "mechanism": mechanism},
            **{"score": s.mean, "score_low": s.low, "score_high": s.high, "cost": s.cost, "seeds": s.seeds},
        }
        for (task, backbone, preset, mechanism), s in scores(rows).items()
    ]


def quality_table(rows: Sequence[Row]) -> Table | None:
    """The scores for the terminal; None if there are none."""
    found = scores(rows)
    if not found:
        return None
    alone = any(s.seeds == 1 for s in found.values())
    title = "accuracy on held-out examples" + (
        "; of one seed the interval is that of its answers only" if alone else ""
    )
    table = Table(title=title, header_style="bold", box=None, pad_edge=False)
    for name in ("task", "mechanism", "accuracy", "95% interval", "seeds", "chance", "µs/token"):
        table.add_column(
            name, justify="left" if name in ("task", "mechanism") else "right", no_wrap=name != "mechanism"
        )
    chances = {row["task"]: row["chance"] for row in rows if row["kind"] == "quality"}
    for (task, backbone, preset, mechanism), s in found.items():
        interval, label = f"{s.low:.1%}–{s.high:.1%}", f"{task} ({preset})"
        label += "" if backbone == "sequential" else f", {backbone}"
        figures = (f"{s.mean:.1%}", interval, str(s.seeds), f"{chances[task]:.1%}", f"{s.cost:.1f}")
        table.add_row(label, mechanism, *figures)
    return table
