"""Residual attention networks: what a trunk computes is weighed by what an hourglass beside it sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.resize import resize
from regard.networks.base import Network, modules_of, told_by
from regard.networks.vision.vit import image_sample

MODULES = {56: (1, 1, 1), 92: (1, 2, 3)}
"""How many attention modules each of the three stages has."""


class Activated(nn.Sequential):
    """A batch norm and a relu."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.BatchNorm2d(channels), nn.ReLU())


class Unit(nn.Module):
    """A pre-activated residual bottleneck: ``x + C_3 a(C_2 a(C_1 a(x)))``, a a norm and a relu.

    Where width or stride changes, a 1 × 1 convolution of a(x) stands for x.
    """

    def __init__(self, inside: int, out: int, stride: int = 1) -> None:
        super().__init__()
        middle = out // 4
        self.start, self.first = Activated(inside), nn.Conv2d(inside, middle, 1, bias=False)
        self.then, self.second = Activated(middle), nn.Conv2d(middle, middle, 3, stride, 1, bias=False)
        self.last, self.third = Activated(middle), nn.Conv2d(middle, out, 1, bias=False)
        same = inside == out and stride == 1
        self.skip = None if same else nn.Conv2d(inside, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.start(x)
        out = self.third(self.last(self.second(self.then(self.first(active)))))
        return out + (x if self.skip is None else self.skip(active))


def halved(x: Tensor) -> Tensor:
    """The maximum of 3 × 3 cells with stride 2, as far as there are cells: 13 become 6, 14 become 7."""
    return F.max_pool2d(x, 3, 2, ceil_mode=True) if min(x.shape[2:]) > 1 else F.max_pool2d(x, 1, 2)


class SoftMask(nn.Module):
    """An hourglass of units: the weight of every entry of the trunk, from 0 to 1.

    Args:
        channels: of the map. depth: how often it is halved.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(Unit(channels, channels) for _ in range(depth))
        self.deepest = Unit(channels, channels)
        self.skips, self.up = (nn.ModuleList(Unit(channels, channels) for _ in range(depth - 1)) for _ in range(2))
        self.start, self.first = Activated(channels), nn.Conv2d(channels, channels, 1, bias=False)
        self.then, self.second = Activated(channels), nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found, size = [], x
        for unit in self.down:
            x = unit(halved(x))
            found.append(x)
        x = self.deepest(x)
        steps = zip(reversed(found[:-1]), reversed(self.skips), reversed(self.up), strict=True)
        for finer, skip, up in steps:
            grown = resize(x, finer, "aligned")
            x = up(skip(finer) + grown)
        return torch.sigmoid(self.second(self.then(self.first(self.start(resize(x, size, "aligned"))))))


class AttentionModule(nn.Module):
    """``unit((1 + M(h)) ⊙ T(h))``, h = unit(x): two units of trunk T, beside them the mask M.

    Args:
        channels: of the map. depth: of the mask.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.before, self.after = Unit(channels, channels), Unit(channels, channels)
        self.trunk = nn.Sequential(Unit(channels, channels), Unit(channels, channels))
        self.mask = SoftMask(channels, depth)

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(x)
        trunk = self.trunk(h)
        return self.after(trunk + trunk * self.mask(h))

    def map(self, x: Tensor) -> Tensor:
        """The mask ``(b, c, y, x)``."""
        return self.mask(self.before(x))


@published(
    "residual_attention",
    family="featuremap",
    kind="network",
    row=151,
    title="Residual Attention Network for Image Classification",
    arxiv="1704.06904",
    year=2017,
    aliases=("attention_56", "attention_92"),
    fidelity="authors' code",
    claim=(
        Claim(
            "Attention-56 has the parameters and multiply-adds at 224 × 224 that the paper prints, to 3%",
            cells="map_networks.residual_attention_of(layers=56)",
            holds="map_networks.is_printed(parameters=31.9, multiply_adds=6.2, within=0.03)",
        ),
        Claim(
            "Attention-92 has the parameters and multiply-adds at 224 × 224 that the paper prints, to 3%",
            cells="map_networks.residual_attention_of(layers=92)",
            holds="map_networks.is_printed(parameters=51.3, multiply_adds=10.4, within=0.03)",
        ),
        Claim(
            "a mask of zero leaves the trunk, bit by bit",
            cells="map_networks.zero_mask",
            holds="map_networks.is_the_trunk",
        ),
    ),
)
class ResidualAttentionNetwork(Network):
    """Three stages of attention modules on pre-activated bottlenecks, whose masks are halved three, two times and once.

    Shapes: ``images (b, 3, y, x)`` -> ``(b, classes)``, of any height and width.

    Args:
        layers: 56 or 92. classes: of the output. width: channels of the first convolution.

    Raises:
        ValueError: other layers.

    Paper: Wang et al., arXiv 1704.06904.
    """

    def __init__(self, layers: int = 56, classes: int = 1000, width: int = 64) -> None:
        super().__init__()
        if layers not in MODULES:
            raise wrong("layers", str(layers), f"one of {', '.join(map(str, MODULES))}")
        self.first, self.start = nn.Conv2d(3, width, 7, 2, 3, bias=False), Activated(width)
        stages, inside = [], width
        for stage, count in enumerate(MODULES[layers]):
            out = 4 * width * 2**stage
            modules = (AttentionModule(out, 3 - stage) for _ in range(count))
            stages.append(nn.Sequential(Unit(inside, out, 1 if stage == 0 else 2), *modules))
            inside = out
        self.stages, out = nn.Sequential(*stages), 2 * inside
        self.last = nn.Sequential(Unit(inside, out, 2), Unit(out, out), Unit(out, out), Activated(out))
        self.classes = nn.Linear(out, classes)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def made() -> ResidualAttentionNetwork:
            return cls(56, 5, 8)

        return [image_sample("attention_56", made(), (40, 35), 3, output=(5,), again=made)]

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The mask ``(b, c, y, x)`` of each module."""
        modules = modules_of(self, AttentionModule).items()
        masks = {name: module.get_submodule("mask") for name, module in modules}
        with told_by(masks, lambda mask, given, out: out) as found:
            self(images)
        return found

    def forward(self, images: Tensor) -> Tensor:
        x = halved(self.start(self.first(images)))
        return self.classes(self.last(self.stages(x)).mean((2, 3)))
