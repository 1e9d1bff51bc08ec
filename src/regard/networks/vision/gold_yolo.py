"""Gold-YOLO: a detector of folding blocks whose levels gather and distribute."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.necks.gold_yolo import EPS, MOMENTUM, GoldYolo, silu, stack
from regard.featuremap.parts.layers import Activation, Convolved, RepVGG, normed_as
from regard.networks.vision.detection_loss import Criterion
from regard.networks.vision.detector import BoxHead, Detector
from regard.networks.vision.vit import random_images

REPEATS = (6, 12, 18, 6)
"""Blocks of each stage and, the second of them, of the neck's, at a depth of one."""
STEPS = (8, 16, 32)
"""Pixels from cell to cell of the maps that boxes are read from."""


@dataclass(frozen=True)
class Sizes:
    """One size of the network.

    Args:
        width, depth: of 1,024 channels and of `REPEATS`. gathered, attention, share, block, skip: see
            `featuremap.necks.gold_yolo.GoldYolo`. bins: of each distance of a box, one for the distance itself.
        parameters, flops: printed, in millions and, of an image of 640 × 640, in billions. kind: of the boxes' overlap
            in training.
    """

    width: float
    depth: float
    gathered: int
    parameters: float
    flops: float
    attention: tuple[int, int] = (2, 4)
    share: float | None = None
    block: str = "rep"
    skip: bool = False
    bins: int = 1
    kind: str = "giou"

    def repeats(self, count: int) -> int:
        """Blocks of a stage that has so many at a depth of one."""
        return max(round(count * self.depth), 1)


SIZES = {
    "N": Sizes(0.25, 0.33, 96, 5.6, 12.1, kind="siou"),
    "S": Sizes(0.50, 0.33, 128, 21.5, 46.0),
    "M": Sizes(0.75, 0.60, 192, 41.3, 87.5, share=2 / 3, bins=17),
    "L": Sizes(1.0, 1.0, 192, 75.1, 151.7, (3, 8), 0.5, "silu", True, 17),
}


class Pools(nn.Module):
    """``W [x, m(x), m(m(x)), m(m(m(x)))]``, m the maximum of 5 × 5 cells, x of half the channels; with ``across`` two
    convolutions stand on either side of it and part of the channels goes around.

    Args:
        width: channels in and out. across: whether there is a way around. activation: of the convolutions.
    """

    def __init__(self, width: int, across: bool, activation: Activation) -> None:
        super().__init__()
        half = width // 2

        def of(inside: int, out: int, kernel: int = 1) -> Convolved:
            return Convolved(inside, out, kernel, activation=activation)

        if across:
            self.before: nn.Module = nn.Sequential(of(width, half), of(half, half, 3), of(half, half))
            self.around: nn.Module | None = of(width, half)
            self.join: nn.Module = nn.Sequential(of(4 * half, half), of(half, half, 3))
            self.last: nn.Module | None = of(width, width)
        else:
            self.before, self.around, self.join, self.last = of(width, half), None, of(4 * half, width), None
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.before(x)]
        for _ in range(3):
            found.append(self.pool(found[-1]))
        joined = self.join(torch.cat(found, 1))
        if self.around is None or self.last is None:
            return joined
        return self.last(torch.cat((self.around(x), joined), 1))


class Head(BoxHead):
    """Scores of classes and distances to the sides of a box, of each cell of one level.

    Args:
        width: of the level. classes: to tell apart. bins: of each distance. direct: whether distances are told beside
            the bins, too.
    """

    def __init__(self, width: int, classes: int, bins: int, direct: bool = False) -> None:
        super().__init__()
        self.bins, self.direct = bins, direct
        self.stem = Convolved(width, width, activation=nn.SiLU)
        self.for_classes, self.for_boxes = (Convolved(width, width, 3, activation=nn.SiLU) for _ in range(2))
        self.classes, self.boxes = nn.Conv2d(width, classes, 1), nn.Conv2d(width, 4 * bins, 1)
        self.sides = nn.Conv2d(width, 4, 1) if direct else None
        starts = [(self.classes, -4.595119850134589), (self.boxes, 1.0)]  # a prior of 1%
        for layer, start in starts if self.sides is None else [*starts, (self.sides, 1.0)]:
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.get_parameter("bias"), start)

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x = self.stem(x)
        boxes = self.for_boxes(x)
        return self.classes(self.for_classes(x)), self.boxes(boxes), None if self.sides is None else self.sides(boxes)


@published(
    "gold_yolo_network",
    family="featuremap",
    kind="network",
    title="Gold-YOLO: Efficient Object Detector via Gather-and-Distribute Mechanism",
    arxiv="2309.11331",
    year=2023,
    fidelity="authors' code",
    claim=Claim(
        "with its blocks folded, each size has the parameters and, for 640 × 640, the FLOPs that are printed",
        cells="gathered.sizes",
        holds="gathered.are_printed",
    ),
)
class GoldYoloNetwork(Detector):
    """Four stages of folding blocks, the neck, and of each cell of three levels a box and the scores of classes.

    `loss` is what trains it, with a `Teacher` where there is one, `found` the choice among its boxes; its backbone may
    begin with `MaskedImages`, whose pretraining is not part of the authors' code but of the paper that they name.

    Shapes: ``images (b, 3, y, x)`` of any height and width -> ``(b, cells, 4 + classes)``: the middle, the width and
    the height of the box in pixels, and probabilities.

    Args:
        size: N, S, M or L. classes: to tell apart. seed: of the weights. width: in place of the size's. bins: of each
            distance in place of the size's: N and S have 17 where a teacher or a pupil has. direct: whether distances
            are told beside the bins, and boxes found by them: so N and S are taught.

    Raises:
        ValueError: another size, fewer bins than one; distances beside no bins.

    Paper: Wang et al., arXiv 2309.11331.
    """

    steps = STEPS

    def __init__(
        self,
        size: str = "N",
        classes: int = 80,
        seed: int = 0,
        width: float | None = None,
        bins: int | None = None,
        direct: bool = False,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise wrong("size", repr(size), f"one of {', '.join(SIZES)}")
        sizes = SIZES[size]
        bins = sizes.bins if bins is None else bins
        if bins < 1 or (direct and bins == 1):
            raise wrong("bins, direct", f"{bins}, {direct}", "one or more; distances beside more than one")
        self.criterion = Criterion(kind=sizes.kind)
        widths = [-(-int(c * (width or sizes.width)) // 8) * 8 for c in (64, 128, 256, 512, 1024)]
        make, activation = (silu, nn.SiLU) if sizes.block == "silu" else (RepVGG, nn.ReLU)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem, self.stages = self.halving(3, widths[0], sizes.block), nn.ModuleList()
            for inside, out, count in zip(widths, widths[1:], REPEATS, strict=False):
                blocks = stack(out, out, sizes.repeats(count), sizes.share, make)
                self.stages.append(nn.Sequential(self.halving(inside, out, sizes.block), blocks))
            self.pools = Pools(widths[-1], sizes.share is None, activation)
            fine, near = widths[1], widths[2]
            given = (fine, 2 * fine, 2 * fine + near)
            repeats = sizes.repeats(REPEATS[1])
            more = (repeats, sizes.gathered, sizes.attention, sizes.share, sizes.block, sizes.skip)
            self.neck = GoldYolo(tuple(widths[1:]), given, *more)
            self.heads = nn.ModuleList(Head(each, classes, bins, direct) for each in given)
        normed_as(self, EPS, MOMENTUM)

    @staticmethod
    def halving(inside: int, out: int, block: str) -> nn.Module:
        """What halves rows and columns."""
        return RepVGG(inside, out, 2) if block == "rep" else Convolved(inside, out, 3, 2, activation=nn.SiLU, bias=True)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def sample(size: str) -> Sample:
            def made(seed: int = 0) -> GoldYoloNetwork:
                network = cls(size, 5, seed, 0.1)
                with torch.no_grad():  # past the zeros that it begins with
                    for module in network.modules():
                        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
                            module.weight.fill_(0.5)
                    for head in (each for each in network.modules() if isinstance(each, Head)):
                        nn.init.normal_(head.classes.weight, std=0.1)
                        nn.init.normal_(head.boxes.weight, std=0.1)
                return network

            def inputs(batch: int, seed: int) -> tuple[Tensor]:
                return random_images((3, 70, 39), batch, seed)

            return Sample(size, made(), {"inputs": inputs, "output": (66, 9), "again": lambda: made(7)})

        return [sample("N"), sample("M")]

    def folded(self) -> Self:
        """A copy each of whose blocks is one convolution and each of whose convolutions with an activation has its norm
        within, as the authors deploy it: those of attention and of injections keep theirs."""
        made = copy.deepcopy(self)
        for module in list(made.modules()):
            for name, child in module.named_children():
                if isinstance(child, RepVGG) or (isinstance(child, Convolved) and child.active):
                    setattr(module, name, child.folded())
        return made
