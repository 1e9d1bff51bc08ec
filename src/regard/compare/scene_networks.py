"""Small networks for drawn scenes, all alike but for the gate in their blocks or the neck on their levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.featuremap.build import gate, neck
from regard.featuremap.neck import Neck
from regard.tasks.boxes import Found, overlaps, suppressed
from regard.tasks.scenes import SHAPES

STRIDES = (4, 8, 16)
SIDES = (0.0, 11.0, 19.0, float("inf"))
"""Boxes whose longer side lies between two of these belong to one level."""
WIDTHS, OUT = (24, 48, 96), 32
PRIOR = -4.0
"""What a cell's scores begin with: few cells show a shape."""
BEST = 60
"""Cells of an image whose boxes are looked at."""


class AnotherImage(nn.Module):
    """A gate whose factors come from the next image of the batch: the control that it has to beat."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        return x * self.own.scale(x.roll(1, 0))


def gated(text: str, channels: int) -> nn.Module:
    """The gate of a text, ``none``, or a control such as ``"se of another image"``."""
    if text == "none":
        return nn.Identity()
    name, _, control = text.partition(" of another image")
    if control or not text.endswith(" of another image"):
        return gate(text)(channels)
    return AnotherImage(gate(name)(channels))


def convolved(inside: int, out: int, stride: int = 1) -> nn.Sequential:
    """A 3 × 3 convolution and a batch norm."""
    return nn.Sequential(nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out))


class Block(nn.Module):
    """``relu(skip(x) + gate(norm(conv(relu(norm(conv(x)))))))``: where published gates stand in residual networks."""

    def __init__(self, inside: int, out: int, stride: int, text: str = "none") -> None:
        super().__init__()
        self.first, self.second = convolved(inside, out, stride), convolved(out, out)
        self.gate = gated(text, out)
        plain = inside == out and stride == 1
        self.skip = (
            nn.Identity()
            if plain
            else nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.skip(x) + self.gate(self.second(torch.relu(self.first(x)))))


class SceneClassifier(nn.Module):
    """A residual network with one gate behind each block.

    Shapes: ``images (b, 3, y, x)`` -> ``(b, 5)``.

    Args:
        text: of the gate. widths: of its stages, of two blocks each. seed: of the weights.
    """

    def __init__(self, text: str, widths: Sequence[int] = (16, 32, 64), seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem, blocks, before = convolved(3, widths[0], 2), [], widths[0]
            for stage, width in enumerate(widths):
                blocks += [Block(before, width, 2 if stage else 1, text), Block(width, width, 1, text)]
                before = width
            self.blocks, self.classes = nn.Sequential(*blocks), nn.Linear(before, len(SHAPES))

    def forward(self, images: Tensor) -> Tensor:
        return self.classes(self.blocks(torch.relu(self.stem(images))).mean((2, 3)))


class Alone(nn.Module):
    """`FPN` without the way down: each level by itself, with as many parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, OUT, 1) for width in WIDTHS)
        self.smooth = nn.ModuleList(nn.Conv2d(OUT, OUT, 3, padding=1) for _ in WIDTHS)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels = zip(self.smooth, self.laterals, maps, strict=True)
        return [smooth(lateral(each)) for smooth, lateral, each in levels]


def levels(text: str) -> nn.Module:
    """The neck of a text, or ``none``."""
    if text == "none":
        return Alone()
    made: Neck = neck(text)(WIDTHS, out=OUT)
    return made


class SceneDetector(nn.Module):
    """A residual network, a neck, and one head for the cells of all levels.

    Shapes: ``images (b, 3, y, x)`` -> scores before the sigmoid ``(b, cells, 5)`` and distances to the left, top, right
    and bottom in pixels ``(b, cells, 4)``, level after level.

    Args:
        text: of the neck. seed: of the weights.
    """

    def __init__(self, text: str, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem, before = convolved(3, 16, 2), (16, *WIDTHS[:-1])
            self.stages = nn.ModuleList(Block(a, b, 2) for a, b in zip(before, WIDTHS, strict=True))
            self.tower = nn.Sequential(nn.Conv2d(OUT, OUT, 3, padding=1), nn.GroupNorm(8, OUT), nn.ReLU())
            self.kinds, self.sides = (nn.Conv2d(OUT, many, 3, padding=1) for many in (len(SHAPES), 4))
            nn.init.constant_(self.kinds.bias, PRIOR)  # pyright: ignore[reportArgumentType]
            self.neck = levels(text)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x, maps = torch.relu(self.stem(images)), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        found = self.neck(maps)
        boxes = found[-len(maps) :]  # a neck that gives twice as many has maps of its own for classes and for boxes
        scores = [self.kinds(self.tower(each)).flatten(2).mT for each in found[: len(maps)]]
        sides = [
            4 * step * F.softplus(self.sides(self.tower(each)).flatten(2).mT)
            for each, step in zip(boxes, STRIDES, strict=True)
        ]
        return torch.cat(scores, 1), torch.cat(sides, 1)


def cells(side: int) -> tuple[Tensor, Tensor]:
    """Middles ``(cells, 2)`` in pixels, x and y, and the level of each of the cells of a square image."""
    found, level = [], []
    for place, step in enumerate(STRIDES):
        steps = step * (torch.arange(side // step) + 0.5)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        found.append(torch.stack([x.flatten(), y.flatten()], -1))
        level.append(torch.full((x.numel(),), place))
    return torch.cat(found), torch.cat(level)


def assigned(kinds: Tensor, boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """For each cell the kind ``(b, cells)`` it has to say, −1 for none, and its box ``(b, cells, 4)``.

    A cell stands for the box of its level whose middle is less than 1.5 strides away and that it lies in.
    """
    places, level = cells(side)
    longer = (boxes[..., 2:] - boxes[..., :2]).amax(-1)
    bounds = torch.tensor(SIDES)
    own = (longer[..., None] >= bounds[level]) & (longer[..., None] < bounds[level + 1])
    near = (places - (boxes[:, :, None, :2] + boxes[:, :, None, 2:]) / 2).abs().amax(-1)
    inside = (places > boxes[:, :, None, :2]).all(-1) & (places < boxes[:, :, None, 2:]).all(-1)
    takes = own & inside & (near < 1.5 * torch.tensor(STRIDES)[level]) & (kinds[..., None] >= 0)
    which = takes.int().argmax(1)
    rows = torch.arange(len(kinds))[:, None]
    return kinds[rows, which].masked_fill(~takes.any(1), -1), boxes[rows, which]


def boxed(sides: Tensor, side: int) -> Tensor:
    """Boxes of the cells from their distances."""
    places, _ = cells(side)
    return torch.cat([places - sides[..., :2], places + sides[..., 2:]], -1)


def detection_loss(found: tuple[Tensor, Tensor], kinds: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Focal loss of the scores and 1 − overlap of the boxes, each over the number of cells that stand for one."""
    (scores, sides), (wanted, places) = found, assigned(kinds, boxes, side)
    there = wanted >= 0
    target = F.one_hot(wanted.clamp(min=0), len(SHAPES)) * there[..., None].to(scores.dtype)
    likely = torch.sigmoid(scores)
    right = target * likely + (1 - target) * (1 - likely)
    balance = 0.25 * target + 0.75 * (1 - target)
    focal = balance * (1 - right).square() * F.binary_cross_entropy_with_logits(scores, target, reduction="none")
    away = 1 - overlaps(boxed(sides, side)[there], places[there])
    return (focal.sum() + away.sum()) / there.sum().clamp(min=1)


@torch.no_grad()
def detected(model: nn.Module, images: Tensor) -> list[Found]:
    """Boxes, scores and kinds of each image, the best cells' without those that overlap a better one's."""
    scores, sides = model(images)
    boxes, likely, found = boxed(sides, images.shape[-1]), torch.sigmoid(scores), []
    for own, sure in zip(boxes, likely, strict=True):
        best = sure.flatten().topk(BEST)
        cell, kind = best.indices // len(SHAPES), best.indices % len(SHAPES)
        found.append(suppressed((own[cell], best.values, kind)))
    return found
