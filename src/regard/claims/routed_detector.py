"""BGF-YOLO: its four levels, and what attention between regions adds."""

from __future__ import annotations

import torch

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.maps import count
from regard.networks.vision.bgf_yolo import STEPS, BGFYolo


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
