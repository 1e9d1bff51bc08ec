"""Drawn scenes whose labels need distant context: what a shape is called depends on a marker anywhere in the image."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

SIDE, SHAPE, MARKER, CLASSES = 32, 7, 5, 5
ROWS, COLUMNS = torch.meshgrid(torch.arange(SHAPE) - SHAPE // 2, torch.arange(SHAPE) - SHAPE // 2, indexing="ij")
SHAPES = torch.stack([torch.ones(SHAPE, SHAPE), (ROWS.abs() + COLUMNS.abs() <= SHAPE // 2).float()])
CROSS = (torch.eye(MARKER) + torch.eye(MARKER).flip(0)).clamp(max=1)
PLUS = torch.zeros(MARKER, MARKER)
PLUS[MARKER // 2] = PLUS[:, MARKER // 2] = 1
MARKERS = torch.stack([PLUS, CROSS])


def scenes(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """``(images (count, 1, 32, 32), classes of the pixels (count, 32, 32))``.

    A marker, + or ×, and three squares or diamonds on noise, in four random quarters. Classes: 0 for all that is no
    shape, 1 and 2 for squares where the marker is + and ×, 3 and 4 for diamonds.
    """
    images = 0.2 * torch.randn(count, 1, SIDE, SIDE, generator=generator)
    labels = torch.zeros(count, SIDE, SIDE, dtype=torch.int64)
    half = SIDE // 2
    for image, label in zip(images, labels, strict=True):
        marker, *kinds = torch.randint(2, (4,), generator=generator).tolist()
        for place, quarter in enumerate(torch.randperm(4, generator=generator).tolist()):
            drawn = MARKERS[marker] if place == 0 else SHAPES[kinds[place - 1]]
            size = len(drawn)
            y, x = torch.randint(half - size + 1, (2,), generator=generator).tolist()
            top, left = half * (quarter // 2) + y, half * (quarter % 2) + x
            rows, columns = slice(top, top + size), slice(left, left + size)
            image[0, rows, columns] += drawn
            if place:
                label[rows, columns] += (drawn * (1 + marker + 2 * kinds[place - 1])).long()
    return images, labels


def overlap(model: Any, images: Tensor, labels: Tensor) -> float:
    """Mean over the classes of intersection over union, all pixels together."""
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in images.split(64)])
    pairs = F.one_hot(labels * CLASSES + found, CLASSES**2).sum((0, 1, 2)).view(CLASSES, CLASSES)
    both = pairs.diagonal()
    return (both / (pairs.sum(0) + pairs.sum(1) - both)).mean().item()
