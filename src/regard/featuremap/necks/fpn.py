"""The feature pyramid network, and the way back up of PANet."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.neck import Neck
from regard.featuremap.resize import Size, halved, resize


@published(
    "fpn",
    family="featuremap",
    kind="neck",
    row=155,
    title="Feature Pyramid Networks for Object Detection",
    arxiv="1612.03144",
    year=2016,
    fidelity="hand values",
    claim=(
        Claim(
            "for ResNet-50 at d = 256 it has the parameters of the paper's sum",
            cells="necks.pyramid_of_resnet50",
            holds="necks.is_the_sum",
        ),
        Claim(
            "every level has d channels at its stride and depends on its own map and the coarser ones alone",
            cells="necks.depends(neck_text=fpn)",
            holds="necks.reads(wanted='0123, 123, 23, 3')",
        ),
        Claim(
            "boxes go to the level that the paper's formula gives",
            cells="necks.boxes",
            holds="necks.is_by_area",
        ),
    ),
)
class FPN(Neck):
    """Coarse maps are doubled and added to finer ones, from the coarsest down.

        m_l = W_l c_l + b_l + up(m_{l+1}),   p_l = C_l m_l

    W_l are 1 × 1 and C_l 3 × 3 convolutions, up is the nearest cell. Coarser maps than are given are every second cell
    of the one before. Parameters: Σ_l (c_l d' + d' + 9 d' d + d).

    Args:
        channels: c_l, fine to coarse. out: d. extra: coarser maps beyond those given. inside: d', channels of m_l, None
            for d, as in the paper.

    Paper: Lin et al., arXiv 1612.03144.
    """

    def __init__(self, channels: Sequence[int], out: int, extra: int = 0, inside: int | None = None) -> None:
        super().__init__(channels, out)
        self.extra, self.inside = extra, out if inside is None else inside
        if extra < 0 or self.inside < 1:
            raise wrong("extra, inside", f"{extra}, {inside}", "none or more coarser maps, one channel or more")
        self.laterals = nn.ModuleList(nn.Conv2d(c, self.inside, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(self.inside, out, 3, padding=1) for _ in channels)

    def fused(self, maps: list[Tensor]) -> list[Tensor]:
        merged = [lateral(each) for lateral, each in zip(self.laterals, maps, strict=True)]
        for level in range(len(merged) - 2, -1, -1):
            merged[level] = merged[level] + resize(merged[level + 1], merged[level])
        found = [smooth(each) for smooth, each in zip(self.smooth, merged, strict=True)]
        for _ in range(self.extra):
            found.append(found[-1][:, :, ::2, ::2])
        return found

    @property
    def reads(self) -> list[tuple[int, ...]]:
        levels = len(self.channels)
        return [tuple(range(min(level, levels - 1), levels)) for level in range(levels + self.extra)]

    @property
    def parameter_count(self) -> int:
        d, inside = self.out, self.inside
        return sum(c * inside + inside + 9 * inside * d + d for c in self.channels)

    def flops(self, given: Sequence[Size], batch: int = 1) -> int:
        inside, levels = self.inside, zip(given, self.channels, strict=True)
        return sum(2 * batch * y * x * (c * inside + 9 * inside * self.out) for (y, x), c in levels)

    @classmethod
    def examples(cls) -> list[Sample]:
        wide = Sample("fpn(inside=6)", cls((3, 5), 4, inside=6))
        return [Sample("fpn", cls((3, 5, 7), 4)), Sample("fpn(extra=2)", cls((3, 5), 4, 2)), wide]


@published(
    "pan",
    family="featuremap",
    kind="neck",
    title="Path Aggregation Network for Instance Segmentation",
    arxiv="1803.01534",
    year=2018,
    fidelity="hand values",
    claim=Claim(
        "every level depends on every map",
        cells="necks.depends(neck_text=pan)",
        holds="necks.reads(wanted='0123, 0123, 0123, 0123')",
    ),
)
class PAN(Neck):
    """`FPN`, then from the finest up again: maps are halved by convolutions and added to coarser ones.

        n_0 = p_0,   n_l = C_l (p_l + D_l n_{l−1}),   D of stride 2

    Parameters: those of `FPN` and (levels − 1) · 2 (9 d² + d).

    Args:
        channels: c_l, fine to coarse. out: d.

    Paper: Liu et al., arXiv 1803.01534.
    """

    def __init__(self, channels: Sequence[int], out: int) -> None:
        super().__init__(channels, out)
        self.down = FPN(channels, out)
        self.halve = nn.ModuleList(nn.Conv2d(out, out, 3, 2, 1) for _ in channels[1:])
        self.smooth = nn.ModuleList(nn.Conv2d(out, out, 3, padding=1) for _ in channels[1:])

    def fused(self, maps: list[Tensor]) -> list[Tensor]:
        finest, *coarser = self.down(maps)
        found = [finest]
        for each, halve, smooth in zip(coarser, self.halve, self.smooth, strict=True):
            found.append(smooth(each + resize(halve(found[-1]), each)))
        return found

    @property
    def parameter_count(self) -> int:
        return self.down.parameter_count + (len(self.channels) - 1) * 2 * (9 * self.out**2 + self.out)

    def flops(self, given: Sequence[Size], batch: int = 1) -> int:
        up = 0
        for finer, coarser in itertools.pairwise(given):
            half = halved(finer)
            up += 18 * batch * self.out**2 * (half[0] * half[1] + coarser[0] * coarser[1])
        return self.down.flops(given, batch) + up


def level_of(width: float, height: float, canonical: float = 224, level: int = 4) -> int:
    """The pyramid's level for a box of so many pixels: ⌊level + log2(√(width height) / canonical)⌋.

    Raises:
        ValueError: a side that is not above zero.
    """
    if not (width > 0 and height > 0):
        raise wrong("width, height", f"{width}, {height}", "above zero")
    return math.floor(level + math.log2(math.sqrt(width * height) / canonical))
