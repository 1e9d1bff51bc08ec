"""OverLoCK: an overview of the image first, whose context leads a closer look."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.networks.base import Network
from regard.networks.stages.network import started
from regard.networks.stages.norms import ConvNorm
from regard.networks.vision.overlock_parts import ContextBlock, LargeKernelBlock, folded
from regard.networks.vision.vit import image_sample


@dataclass(frozen=True)
class Sizes:
    """Of one network.

    Args:
        depths, widths: of the four stages of the overview. closer: blocks of the last two stages of the closer look.
            heads: of these. sides: of the large kernels of each stage. inner: of the last matrix before the classes.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    closer: tuple[int, int]
    heads: tuple[int, int]
    sides: tuple[int, ...] = (17, 15, 13, 7)
    inner: int = 1024


SIZES = {
    "xt": Sizes((2, 2, 3, 2), (56, 112, 256, 336), (6, 2), (4, 6)),
    "t": Sizes((4, 4, 6, 2), (64, 128, 256, 512), (12, 2), (4, 8)),
    "s": Sizes((6, 6, 8, 3), (64, 128, 320, 512), (16, 3), (8, 16)),
    "b": Sizes((8, 8, 10, 4), (80, 160, 384, 576), (20, 4), (6, 9)),
}


@published(
    "overlock",
    family="featuremap",
    kind="network",
    title="OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels",
    arxiv="2502.20087",
    year=2025,
    fidelity="authors' code",
    claim=(
        Claim(
            "deployed, all four have the parameters that the authors print, and their multiply-adds at 224 × 224 to "
            "5%; trained, exactly as many parameters as their networks",
            cells="map_networks.overlock",
            holds="map_networks.is_overlock",
        ),
    ),
)
class OverLoCK(Network):
    """Convolutions of large kernels down to a 32nd of the resolution; what they find leads dynamic kernels before.

    The overview's last map is the context: it is taken up to a 16th, where blocks of `ContextBlock` carry it along with
    the map, and down again. `ContextMixing` shows what it looks at.

    Shapes: ``images (b, 3, y, x)`` -> ``(b, classes)``, of any height and width.

    Args:
        size: xt, t, s or b, or `Sizes`. classes: to tell apart. supervised: whether there is the head of the overview,
            which only training reads, by `all_outputs`. seed: of the weights.

    Raises:
        ValueError: an unknown size.

    Paper: Lou and Yu, arXiv 2502.20087. The norm behind the keys reads the whole map, not its regions, which differs in
    training alone. `folded` makes one convolution of kernels beside each other.
    """

    def __init__(self, size: str | Sizes = "xt", classes: int = 1000, supervised: bool = False, seed: int = 0) -> None:
        super().__init__()
        if isinstance(size, str):
            if size not in SIZES:
                raise wrong("size", repr(size), f"one of {', '.join(SIZES)}, or Sizes")
            size = SIZES[size]
        w, context = size.widths, size.widths[-1] // 4
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            half = w[0] // 2
            steps = (
                ConvNorm(3, half, 3, 2),
                ConvNorm(half, half, 3),
                ConvNorm(half, w[0], 3, 2),
                ConvNorm(w[0], w[0], 3),
            )
            self.stem = nn.Sequential(*(part for step in steps for part in (step, nn.GELU())))[:-1]
            self.downs = nn.ModuleList(ConvNorm(a, b, 3, 2) for a, b in itertools.pairwise(w))
            self.stages = nn.ModuleList(
                nn.Sequential(*(LargeKernelBlock(width, side, 4, place > 1) for _ in range(depth)))
                for place, (width, side, depth) in enumerate(zip(w, size.sides, size.depths, strict=True))
            )
            self.context = nn.Conv2d(w[-1], context, 1)
            self.context_down, self.map_down = ConvNorm(context, context, 3, 2), ConvNorm(w[-2], w[-1], 3, 2)
            self.closer = nn.ModuleList(
                nn.ModuleList(
                    ContextBlock(w[2 + place], context, size.sides[2 + place], heads, 3, not place and not block)
                    for block in range(count)
                )
                for place, (count, heads) in enumerate(zip(size.closer, size.heads, strict=True))
            )
            self.wide, self.classes = ConvNorm(w[-1] + context, size.inner), nn.Linear(size.inner, classes)
            overview = {"overview": nn.Sequential(nn.BatchNorm2d(w[-1]), nn.Conv2d(w[-1], classes, 1))}
            self.supervised = nn.ModuleDict(overview if supervised else {})
            started(self, "all")

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        small = cls(Sizes((1, 1, 1, 1), (8, 8, 16, 24), (2, 1), (1, 2), (5, 5, 5, 7), 11), 7)
        with torch.no_grad():
            for name, parameter in small.named_parameters():
                if name.endswith(("gamma", "beta")) or ".tables." in name:
                    parameter.add_(0.1)
        return [image_sample("overlock", small, (97, 70))]

    def overview(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The map at a 16th of the resolution, and the last one, at a 32nd."""
        x, found = self.stages[0](self.stem(images)), []
        for down, stage in zip(self.downs, list(self.stages)[1:], strict=True):
            x = stage(down(x))
            found.append(x)
        return found[1], found[2]

    def all_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """``classes (b, classes)``, and where there is a head for it ``overview``, the same of the overview alone."""
        x, last = self.overview(images)
        context = self.context(last)
        begun = h = F.interpolate(context, x.shape[2:], mode="bilinear", align_corners=False)
        stages: Any = self.closer
        for block in stages[0]:
            x, h = block(x, h, begun)
        x, h = self.map_down(x), self.context_down(h)
        for block in stages[1]:
            x, h = block(x, h, context)
        found = {"classes": self.classes(F.silu(self.wide(torch.cat([x, h], 1))).mean((2, 3)))}
        return found | {name: head(last).mean((2, 3)) for name, head in self.supervised.items()}

    def forward(self, images: Tensor) -> Tensor:
        return self.all_outputs(images)["classes"]

    def folded(self) -> nn.Module:
        """A copy for evaluation with one convolution for each norm and for kernels beside each other."""
        return folded(self)
