"""BGF-YOLO: its four levels, what attention between regions adds, and what it finds in drawn scenes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.maps import count
from regard.networks.vision.bgf_yolo import PLAIN, STEPS, BGFYolo
from regard.tasks.boxes import average_precision
from regard.tasks.scenes import SHAPES, Scenes
from regard.train.fit import Recipe, fit

SCENES, BATCH, UNSEEN = Scenes(64, 8), 16, 256


@measured(y=(64, 97), x=(128, 75))
def levels(y: int, x: int) -> dict[str, int]:
    """The boxes of an image, and the cells of maps of 4, 8, 16 and 32 pixels a cell."""
    net = BGFYolo("n", 1, width=1 / 16).eval()
    with torch.no_grad():
        boxes = net(torch.zeros(1, 3, y, x)).shape[1]
    return {"boxes": boxes, "cells": sum(-(-y // step) * -(-x // step) for step in STEPS)}


def are_four(found: Figures) -> Finding:
    """A box for each cell."""
    boxes, cells = found("boxes"), found("cells")
    return Finding.of(f"{boxes} boxes, {cells} cells", boxes == cells)


@measured(routed=(True, False), size=["n"])
def sizes(routed: bool, size: str) -> dict[str, int]:
    """Parameters of the network, and boxes of an image of 640 × 640."""
    with torch.device("meta"):
        net = BGFYolo(size, 1, routed)
        return {"parameters": count(net), "levels": len(net.heads)}


def is_less(found: Figures) -> Finding:
    """Fewer, and as many levels."""
    own, plain = (found.one("parameters", routed=word) for word in (True, False))
    return Finding.of(f"{own:,} parameters, {plain:,} without attention", plain < own, set(found("levels")) == {4})


@measured(size=tuple(PLAIN))
def plain(size: str) -> dict[str, int]:
    """Parameters of the plain network of 80 classes, without the three."""
    with torch.device("meta"):
        return {"parameters": count(BGFYolo(size, 80, routed=False, generalized=False, fourth=False))}


def is_printed(found: Figures) -> Finding:
    """As many as are printed, exactly."""
    told, held = [], []
    for size, printed in PLAIN.items():
        own = found.one("parameters", size=size)
        told.append(f"{size} {own:,}")
        held.append(own == printed)
    return Finding.of(", ".join(told), *held)


@quick(seed=[0], steps=[40])
@measured(full=(True, False), seed=range(3), steps=[1000])
def trained(full: bool, seed: int, steps: int) -> dict[str, float]:
    """The mean average precision over the shapes of unseen scenes, an overlap of a half being right, with the three
    and without."""
    net = BGFYolo("n", len(SHAPES), full, 1 / 16, seed, full, full)

    def loss(model: Any, drawn: Generator) -> Tensor:
        return model.loss(*SCENES.many(BATCH, drawn)).total / BATCH

    fit(net, loss, Recipe(steps, 3e-3, seed=seed))
    images, kinds, boxes = SCENES.many(UNSEEN, torch.Generator().manual_seed(1_000 + seed))
    found = net.eval().found(images, 0.001, 0.5, True, candidates=300)
    every = [average_precision(found, list(kinds), list(boxes), kind) for kind in range(len(SHAPES))]
    return {"precision": sum(every) / len(every)}


def finds_more(found: Figures) -> Finding:
    """The mean over the seeds is above the plain network's."""
    own, other = (found("precision", full=word) for word in (True, False))
    figure = f"{', '.join(f'{each:.1%}' for each in own)}, plain {', '.join(f'{each:.1%}' for each in other)}"
    return Finding.of(figure, sum(own) / len(own) > sum(other) / len(other))
