"""BGF-YOLO: a detector whose neck joins levels in many ways, routes attention between regions and reads four levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.parts.layers import Convolved, RepVGG, normed_as
from regard.featuremap.resize import resize
from regard.networks.stages.steps.attention import Enhanced
from regard.networks.vision.detection_loss import Criterion
from regard.networks.vision.detector import BoxHead, Detector
from regard.networks.vision.gold_yolo import Pools
from regard.networks.vision.vit import random_images, settled

EPS, MOMENTUM, BINS, REGIONS, HEADS = 1e-3, 0.03, 16, 8, 8
REPEATS, STEPS = (3, 6, 6, 3), (4, 8, 16, 32)
SIZES = {
    "n": (0.33, 0.25, 1024),
    "s": (0.33, 0.50, 1024),
    "m": (0.67, 0.75, 768),
    "l": (1.0, 1.0, 512),
    "x": (1.0, 1.25, 512),
}
"""Depth, width, and the widest map before it is multiplied."""
PLAIN = {"n": 3_157_184, "s": 11_166_544, "m": 25_902_624, "l": 43_691_504, "x": 68_229_632}
"""Parameters that the plain network of 80 classes, the one that it is compared with, learns, as printed."""

convolved = partial(Convolved, activation=nn.SiLU)


class Growing(nn.Module):
    """``W [a, b, f_1(b), f_2(f_1(b)), …]``, [a, b] = W' x, f two convolutions 3 × 3, beside the map itself or, where
    ``whole`` is False, in its place."""

    def __init__(self, inside: int, out: int, repeats: int, whole: bool = True) -> None:
        super().__init__()
        half, self.whole = out // 2, whole
        self.first, self.last = convolved(inside, 2 * half), convolved((2 + repeats) * half, out)
        pairs = (nn.Sequential(convolved(half, half, 3), convolved(half, half, 3)) for _ in range(repeats))
        self.blocks = nn.ModuleList(pairs)

    def forward(self, x: Tensor) -> Tensor:
        found = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            found.append(found[-1] + block(found[-1]) if self.whole else block(found[-1]))
        return self.last(torch.cat(found, 1))


class Stage(nn.Module):
    """``W [a, g_1(b), g_2(g_1(b)), …]``, a = W_a x, b = W_b x, g a convolution 3 × 3 of a `RepVGG` block beside the map
    itself."""

    def __init__(self, inside: int, out: int, repeats: int) -> None:
        super().__init__()
        first = out // 2
        rest = out - first
        self.around, self.through = convolved(inside, first), convolved(inside, rest)
        block = partial(RepVGG, activation=nn.SiLU, whole=False)
        self.blocks = nn.ModuleList(nn.Sequential(block(rest, rest), convolved(rest, rest, 3)) for _ in range(repeats))
        self.last = convolved(first + repeats * rest, out)

    def forward(self, x: Tensor) -> Tensor:
        found, y = [self.around(x)], self.through(x)
        for block in self.blocks:
            y = y + block(y)
            found.append(y)
        return self.last(torch.cat(found, 1))


class Head(BoxHead):
    """Scores of classes and distances to the sides of a box, expected over bins, of each cell of one level.

    Args:
        width: of the level. boxes, inner: inner channels of both towers. classes: to tell apart. step: pixels from cell
            to cell, by which the first scores are those of five boxes of an image of 640 × 640.
    """

    bins = BINS

    def __init__(self, width: int, boxes: int, classes: int, inner: int, step: int) -> None:
        super().__init__()

        def tower(between: int, out: int, start: float) -> nn.Sequential:
            last = nn.Conv2d(between, out, 1)
            nn.init.constant_(last.get_parameter("bias"), start)
            return nn.Sequential(convolved(width, between, 3), convolved(between, between, 3), last)

        self.boxes = tower(boxes, 4 * BINS, 1.0)
        self.classes = tower(inner, classes, math.log(5 / classes / (640 / step) ** 2))

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.classes(x), self.boxes(x), None


class Routes(nn.Module):
    """The base of both necks: what crosses between levels is attended to by regions, or passes as it is."""

    def __init__(self, routed: bool) -> None:
        super().__init__()
        self.routed = routed

    def route(self, width: int) -> nn.Module:
        """Attention of the cells of 8 × 8 regions to those of the four that fit best, with a convolution of values."""
        if not self.routed:
            return nn.Identity()
        return Enhanced(width, HEADS, True, f"routed_regions(topk=4, regions={REGIONS})", 3)


class Plain(Routes):
    """Levels joined down and up again, the neck that `Generalized` is compared with.

        t_2 = f [r(up(c_3)), c_2],   t_1 = f [r(up(t_2)), c_1],   t_0 = f [r(up(t_1)), c_0]
        p_0 = t_0,   p_i = f [r(D p_{i−1}), t_i],   p_3 = f [r(D p_2), c_3]

    f are `Growing` without the map itself, D convolutions 3 × 3 of stride 2, r see `Routes`. Without the fourth level
    there is no t_0 and p_1 = t_1.

    Args:
        widths: of the four maps that come in; those that come out have the same. repeats: of each stage. routed: see
            `Routes`. fourth: whether the finest map is read and given.
    """

    def __init__(self, widths: Sequence[int], repeats: int, routed: bool, fourth: bool) -> None:
        super().__init__(routed)
        self.first = 0 if fourth else 1
        f = partial(Growing, repeats=repeats, whole=False)
        levels = range(self.first, 3)
        self.down_routes = nn.ModuleList(self.route(widths[n + 1]) for n in reversed(levels))
        self.downs = nn.ModuleList(f(widths[n + 1] + widths[n], widths[n]) for n in reversed(levels))
        self.halves = nn.ModuleList(convolved(widths[n], widths[n], 3, 2) for n in levels)
        self.up_routes = nn.ModuleList(self.route(widths[n]) for n in levels)
        self.ups = nn.ModuleList(f(widths[n] + widths[n + 1], widths[n + 1]) for n in levels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        kept = [maps[-1]]
        for route, stage, each in zip(self.down_routes, self.downs, reversed(maps[self.first : -1]), strict=True):
            kept.append(stage(torch.cat((route(resize(kept[-1], each)), each), 1)))
        found = [kept.pop()]
        for half, route, stage in zip(self.halves, self.up_routes, self.ups, strict=True):
            found.append(stage(torch.cat((route(half(found[-1])), kept.pop()), 1)))
        return found


class Generalized(Routes):
    """Four levels joined down, up and from two levels away, what crosses between levels attended to by regions.

        d_3 = f [r(D c_2), W c_3],   d_2 = f [up(d_3), r(D' c_1), c_2],   d_1 = f [r(up(d_2)), c_1]
        p_0 = f [r(up(d_1)), c_0],   p_1 = f [r(D p_0), d_1],             p_2 = f [r(D p_1), d_2]
        p_3 = f [d_3, D d_2, D' p_2]

    f are `Stage`, D convolutions 3 × 3 of stride 2, r see `Routes`. Without the fourth level there is no p_0 and
    p_1 = d_1.

    Args:
        channels: c of four levels. widths: of the four maps that come out, and half of the coarsest in between.
            repeats: of each stage. routed: see `Routes`. fourth: whether the finest map is read and given.
    """

    def __init__(
        self, channels: Sequence[int], widths: Sequence[int], repeats: int, routed: bool, fourth: bool = True
    ) -> None:
        super().__init__(routed)
        (c0, c1, c2, c3), (w0, w1, w2, w3) = channels, widths
        self.fourth, route = fourth, self.route
        half = partial(convolved, kernel=3, stride=2)
        self.reduce, self.halve2, self.route3 = convolved(c3, w2), half(c2, w2), route(w2)
        self.halve1, self.route2 = half(c1, w1), route(w1)
        self.route1 = route(w2)
        self.down3, self.down2 = Stage(2 * w2, w2, repeats), Stage(w2 + w1 + c2, w2, repeats)
        self.down1 = Stage(w2 + c1, w1, repeats)
        if fourth:
            self.route0, self.down0 = route(w1), Stage(w1 + c0, w0, repeats)
            self.up1, self.route_up1, self.stage1 = half(w0, w0), route(w0), Stage(w0 + w1, w1, repeats)
        self.up2, self.route_up2, self.stage2 = half(w1, w1), route(w1), Stage(w1 + w2, w2, repeats)
        self.far3, self.up3, self.stage3 = half(w2, w1), half(w2, w1), Stage(w2 + 2 * w1, w3, repeats)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        c0, c1, c2, c3 = maps
        coarse = self.reduce(c3)
        d3 = self.down3(torch.cat((resize(self.route3(self.halve2(c2)), c3), coarse), 1))
        near = self.route2(self.halve1(c1))
        d2 = self.down2(torch.cat((resize(d3, c2), resize(near, c2), c2), 1))
        d1 = self.down1(torch.cat((self.route1(resize(d2, c1)), c1), 1))
        found, p1 = [], d1
        if self.fourth:
            found = [self.down0(torch.cat((self.route0(resize(d1, c0)), c0), 1))]
            p1 = self.stage1(torch.cat((self.route_up1(self.up1(found[0])), d1), 1))
        p2 = self.stage2(torch.cat((self.route_up2(self.up2(p1)), d2), 1))
        far, up = self.far3(d2), self.up3(p2)
        return [*found, p1, p2, self.stage3(torch.cat((d3, far, up), 1))]


@published(
    "bgf_yolo",
    family="featuremap",
    kind="network",
    row=221,
    title="BGF-YOLO: Enhanced YOLOv8 with Multiscale Attentional Feature Fusion for Brain Tumor Detection",
    arxiv="2309.12585",
    year=2023,
    fidelity="authors' code",
    claim=(
        Claim(
            "boxes are read from four levels, of 4 to 32 pixels a cell, of images of any size",
            cells="routed_detector.levels",
            holds="routed_detector.are_four",
        ),
        Claim(
            "without its attention it has fewer parameters and the same levels",
            cells="routed_detector.sizes",
            holds="routed_detector.is_less",
        ),
        Claim(
            "without attention, generalized neck and fourth head it has as many parameters as the network that it is "
            "compared with",
            cells="routed_detector.plain",
            holds="routed_detector.is_printed",
        ),
        Claim(
            "trained on drawn scenes it has a higher mean average precision than the plain network, over three seeds",
            cells="routed_detector.trained",
            holds="routed_detector.finds_more",
        ),
    ),
)
class BGFYolo(Detector):
    """Four stages of growing blocks, `Generalized`, and of each cell of four levels a box and the scores of classes.

    ``BGFYolo("x", 1, routed=False, generalized=False, fourth=False)`` is the plain network that it is compared with;
    each of the three is there or not. `loss` trains it and `found` chooses among its boxes, as in the authors' code.

    Shapes: ``images (b, 3, y, x)`` of any height and width -> ``(b, cells, 4 + classes)``: the middle, the width and
    the height of the box in pixels, and probabilities.

    Args:
        size: n, s, m, l or x; the authors have n and x. classes: to tell apart. routed: whether there is attention
            between regions. width: in place of the size's. seed: of the weights. generalized: whether the neck is
            `Generalized`, else `Plain`. fourth: whether boxes are read of cells of 4 pixels too.

    Raises:
        ValueError: another size.

    Paper: Kang et al., arXiv 2309.12585.
    """

    def __init__(
        self,
        size: str = "x",
        classes: int = 1,
        routed: bool = True,
        width: float | None = None,
        seed: int = 0,
        generalized: bool = True,
        fourth: bool = True,
    ) -> None:
        super().__init__()
        self.criterion = Criterion(10, 0.5, 6.0, "ciou", "ciou", 1e-7, False, 0.5, 7.5, 1.5, 1.0, True)
        if size not in SIZES:
            raise wrong("size", repr(size), f"one of {', '.join(SIZES)}")
        depth, wide, most = SIZES[size]
        repeats = [max(round(n * depth), 1) for n in REPEATS]
        widths = [-(-int(min(c, most) * (width or wide)) // 8) * 8 for c in (64, 128, 256, 512, 1024)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem, self.stages = convolved(3, widths[0], 3, 2), nn.ModuleList()
            for inside, out, count in zip(widths, widths[1:], repeats, strict=False):
                self.stages.append(nn.Sequential(convolved(inside, out, 3, 2), Growing(out, out, count)))
            self.pools = Pools(widths[4], False, nn.SiLU)
            more, given = (max(round(3 * depth), 1), routed, fourth), widths[1:]
            self.neck = Generalized(given, given, *more) if generalized else Plain(given, *more)
            self.steps, levels = (STEPS, given) if fourth else (STEPS[1:], given[1:])
            inner = (max(16, levels[0] // 4, 4 * BINS), classes, max(levels[0], classes))
            self.heads = nn.ModuleList(Head(each, *inner, step) for each, step in zip(levels, self.steps, strict=True))
        normed_as(self, EPS, MOMENTUM)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def sample(label: str, cells: int, **more: Any) -> Sample:
            def made(seed: int = 0) -> BGFYolo:
                network = cls("n", 3, width=1 / 16, seed=seed, **more)
                return settled(network, *random_images((3, 70, 99), 3, seed))

            def inputs(batch: int, seed: int) -> tuple[Tensor]:
                return random_images((3, 70, 99), batch, seed)

            return Sample(label, made(), {"inputs": inputs, "output": (cells, 7), "again": lambda: made(7)})

        three = 9 * 13 + 5 * 7 + 3 * 4
        return [
            sample("bgf_yolo", 18 * 25 + three),
            sample("three levels", three, fourth=False),
            sample("plain neck", 18 * 25 + three, generalized=False),
        ]
