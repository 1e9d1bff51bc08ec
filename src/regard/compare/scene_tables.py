"""What gates and necks are worth on drawn scenes: the same small network with each of them, over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.compare.scaling import student
from regard.compare.scene_networks import SceneClassifier, SceneDetector, detected, detection_loss
from regard.core.errors import wrong
from regard.experiments.cell import Cell, Report, Scalar
from regard.tasks.boxes import average_precision, overlaps
from regard.tasks.scenes import SHAPES, Scenes
from regard.train.fit import Recipe, fit

TEST_SEED = 7_919
GATES = (
    *("none", "se", "se of another image", "ese", "eca", "fcanet", "gc", "cbam", "coord", "ela", "triplet"),
    *("ulsam", "gcg", "high_order", "pat_channel", "sdlska"),
)
"""Fourteen gates, no gate, and squeeze and excitation by the wrong image."""
NECKS = (
    *("none", "fpn", "pan", "bifpn", "fpn | bifpn", "revfp", "fpn | csn", "revfp | csn"),
    *("fpn | sepc(convolutions=1)", "fpn | dyhead(blocks=1)"),
)
"""Nine necks, and each level by itself."""
SMALL = 11.0
"""Boxes of shorter sides, in pixels, are small."""


@dataclass(frozen=True)
class Size:
    """Sizes of training: ``steps``, ``batch``, ``tests`` and the highest ``rate``."""

    steps: int
    batch: int
    tests: int
    rate: float = 4e-3


PRESETS = {
    "gates": {"smoke": Size(2, 8, 64), "small": Size(400, 64, 4096, 2e-3)},
    "necks": {"smoke": Size(2, 4, 16), "small": Size(500, 16, 512)},
}


@dataclass(frozen=True)
class SceneCell(Cell):
    """The base of a trained network of scenes.

    Args:
        text: of the gate or neck, or ``none``. seed: of weights and data; the same seed gives every text the same data
            and the rest of the network the same start. preset: of `PRESETS`. threads: of the CPU.
    """

    kind: ClassVar[str] = "scenes"
    suite: ClassVar[str]
    text: str
    seed: int = 0
    preset: str = "small"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.preset not in PRESETS[self.suite]:
            raise wrong("preset", repr(self.preset), f"one of {', '.join(PRESETS[self.suite])}")
        self.network()  # what there is not is named before anything is measured

    @property
    def size(self) -> Size:
        return PRESETS[self.suite][self.preset]

    def network(self) -> nn.Module:
        """The network, untrained."""
        raise NotImplementedError

    def loss(self, model: nn.Module, generator: Generator) -> Tensor:
        """Of one step."""
        raise NotImplementedError

    def tested(self, model: nn.Module) -> Mapping[str, Scalar]:
        """The figures, on scenes that are the same for all."""
        raise NotImplementedError

    def run(self, report: Report = lambda what: None) -> Mapping[str, Scalar]:
        torch.set_num_threads(self.threads)
        model = self.network()

        def told(step: int, value: float) -> None:
            if step % 20 == 0:
                report(f"{self.label}: step {step} of {self.size.steps}, loss {value:.3f}")

        fit(model, self.loss, Recipe(self.size.steps, self.size.rate, seed=self.seed), report=told)
        parameters = sum(each.numel() for each in model.parameters())
        return {"parameters": parameters, "steps": self.size.steps, **self.tested(model)}


class GateCell(SceneCell):
    """One gate in each block of a residual network that names the shape in a scene of 32 × 32."""

    kind = "scenes, gates"
    suite = "gates"
    scenes: ClassVar[Scenes] = Scenes()

    def network(self) -> nn.Module:
        return SceneClassifier(self.text, seed=self.seed)

    def loss(self, model: nn.Module, generator: Generator) -> Tensor:
        images, kinds = self.scenes.one(self.size.batch, generator)
        return F.cross_entropy(model(images), kinds)

    @torch.no_grad()
    def tested(self, model: nn.Module) -> Mapping[str, Scalar]:
        generator, right = Generator().manual_seed(TEST_SEED), []
        for _ in range(0, self.size.tests, 64):
            images, kinds = self.scenes.one(64, generator)
            right.append(model(images).argmax(1) == kinds)
        return {"accuracy": torch.cat(right).double().mean().item()}


class NeckCell(SceneCell):
    """One neck between a residual network and the head of a detector, on scenes of 64 × 64."""

    kind = "scenes, necks"
    suite = "necks"
    scenes: ClassVar[Scenes] = Scenes(64)

    def network(self) -> nn.Module:
        return SceneDetector(self.text, seed=self.seed)

    def loss(self, model: nn.Module, generator: Generator) -> Tensor:
        images, kinds, boxes = self.scenes.many(self.size.batch, generator)
        return detection_loss(model(images), kinds, boxes, self.scenes.side)

    def tested(self, model: nn.Module) -> Mapping[str, Scalar]:
        generator, found, there, places = Generator().manual_seed(TEST_SEED), [], [], []
        for _ in range(0, self.size.tests, 16):
            images, kinds, boxes = self.scenes.many(16, generator)
            found += detected(model, images)
            there += list(kinds)
            places += list(boxes)
        small = [own.masked_fill((box[:, 2] - box[:, 0]) >= SMALL, -1) for own, box in zip(there, places, strict=True)]
        return {
            "ap50": mean(average_precision(found, there, places, kind) for kind in range(len(SHAPES))),
            "small_recall": recall(found, small, places),
        }


def recall(found: Sequence[Any], kinds: Sequence[Tensor], boxes: Sequence[Tensor], overlap: float = 0.5) -> float:
    """The share of boxes that one of the ten best of an image with their kind overlaps by ``overlap`` or more."""
    hits: list[bool] = []
    for (own, _, what), real, places in zip(found, kinds, boxes, strict=True):
        shared = overlaps(places[:, None], own[None, :10]) * (what[None, :10] == real[:, None])
        hits += (shared.amax(1) >= overlap)[real >= 0].tolist()
    return mean(hits) if hits else float("nan")


CELLS: dict[str, tuple[type[SceneCell], tuple[str, ...], str, str]] = {
    "gates": (GateCell, GATES, "accuracy", "se"),
    "necks": (NeckCell, NECKS, "ap50", "fpn"),
}
"""Of each suite: its cells, what is compared, the figure, and what others are compared with."""
FURTHER = {"gates": (), "necks": ("small_recall",)}
HEADS = {"accuracy": "accuracy", "ap50": "AP50", "small_recall": "recall of small shapes"}


def cells(suite: str, texts: Sequence[str], seeds: int, preset: str, threads: int) -> list[Cell]:
    """The cells of a suite, seed after seed, so that a run that is stopped has whole seeds."""
    made, all_texts, _, _ = CELLS[suite]
    return [made(text, seed, preset, threads) for seed in range(seeds) for text in texts or all_texts]


def markdown(rows: Sequence[Mapping[str, Any]], suite: str) -> str:
    """The table: each text's mean over the seeds with its 95% interval, and the same of what it is above the one that
    all are compared with, seed by seed.

    Raises:
        ValueError: no row of the suite.
    """
    cell, _, figure, beside = CELLS[suite]
    own = [row for row in rows if row["kind"] == cell.kind]
    if not own:
        raise wrong("rows", "none of the suite", f"those of `regard compare --suite {suite}`")
    base = {row["seed"]: row[figure] for row in own if row["text"] == beside}
    named = [HEADS[name] for name in (figure, *FURTHER[suite])]
    head = [suite.removesuffix("s"), "parameters", *named, f"above `{beside}`", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for text in dict.fromkeys(row["text"] for row in own):
        mine = [row for row in own if row["text"] == text]
        above = [row[figure] - base[row["seed"]] for row in mine if row["seed"] in base]
        told = [between([row[name] for row in mine]) for name in (figure, *FURTHER[suite])]
        gap = "" if text == beside or not above else between(above, sign="+")
        name = text.replace(" | ", " ∣ ")  # a bar would end the column
        parts = [f"`{name}`", f"{mine[0]['parameters']:,}", *told, gap, str(len(mine))]
        lines.append("| " + " | ".join(parts) + " |")
    return "\n".join(lines) + "\n"


def between(values: Sequence[float], sign: str = "") -> str:
    """The mean in percent and half of its 95% interval by Student's t; of one value the value."""
    middle = f"{100 * mean(values):{sign}.1f}"
    if len(values) < 2:
        return middle
    return f"{middle} ± {100 * student(len(values) - 1) * stdev(values) / math.sqrt(len(values)):.1f}"
