"""ResNeSt: residual networks whose middle convolutions are split and weighed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.mixtures.split import SplitAttention
from regard.networks.base import Network
from regard.networks.vision.vit import image_sample

SIZES = {50: ((3, 4, 6, 3), 64), 101: ((3, 4, 23, 3), 128), 200: ((3, 24, 36, 3), 128), 269: ((3, 30, 48, 8), 128)}
"""Blocks of each stage and channels of the stem."""


class SplitBlock(nn.Module):
    """``relu(norm(W_3 pool(split(relu(norm(W_1 x))))) + skip(x))``, split a `SplitAttention`.

    With a stride, the means of 3 × 3 cells are taken after the split attention, and of 2 × 2 in the skip.
    """

    def __init__(self, inside: int, planes: int, stride: int, splits: int, groups: int) -> None:
        super().__init__()
        out = 4 * planes
        self.first, self.norm1 = nn.Conv2d(inside, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.split = SplitAttention(planes, splits=splits, groups=groups)
        self.pool = nn.AvgPool2d(3, stride, 1) if stride > 1 else nn.Identity()
        self.last, self.norm3 = nn.Conv2d(planes, out, 1, bias=False), nn.BatchNorm2d(out)
        half = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        project = nn.Sequential(half, nn.Conv2d(inside, out, 1, bias=False), nn.BatchNorm2d(out))
        self.skip = nn.Identity() if stride == 1 and inside == out else project

    def forward(self, x: Tensor) -> Tensor:
        inner = self.pool(self.split(torch.relu(self.norm1(self.first(x)))))
        return torch.relu(self.norm3(self.last(inner)) + self.skip(x))


@published(
    "resnest",
    family="featuremap",
    kind="network",
    row=200,
    title="ResNeSt: Split-Attention Networks",
    arxiv="2004.08955",
    year=2020,
    fidelity="third-party code",
    claim=Claim(
        "the parameters and multiply-adds of ResNeSt-50 at 224 × 224 are those printed, to 1%",
        cells="map_networks.resnest",
        holds="map_networks.is_printed(parameters=27.5, multiply_adds=5.39, within=0.01)",
    ),
)
class ResNeSt(Network):
    """A stem of three convolutions, four stages of split-attention blocks, the mean, and a matrix to the classes.

    Shapes: ``images (b, 3, y, x)`` -> ``(b, classes)``, of any height and width.

    Args:
        layers: 50, 101, 200 or 269. classes: of the output. splits, groups: of each `SplitAttention`. width: channels
            of the first stage's inner maps. blocks: of each stage instead of those of ``layers``.

    Raises:
        ValueError: other layers.

    Paper: Zhang et al., arXiv 2004.08955.
    """

    def __init__(
        self,
        layers: int = 50,
        classes: int = 1000,
        splits: int = 2,
        groups: int = 1,
        width: int = 64,
        blocks: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if layers not in SIZES:
            raise wrong("layers", str(layers), f"one of {', '.join(map(str, SIZES))}")
        counts, stem = blocks or SIZES[layers][0], SIZES[layers][1] * width // 64
        steps, inside, parts = ((3, stem // 2, 2), (stem // 2, stem // 2, 1), (stem // 2, stem, 1)), stem, []
        for c, out, stride in steps:
            parts += [nn.Conv2d(c, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.stem, stages = nn.Sequential(*parts, nn.MaxPool2d(3, 2, 1)), []
        for stage, count in enumerate(counts):
            planes = width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(SplitBlock(inside, planes, stride, splits, groups))
                inside = 4 * planes
        self.blocks, self.classes = nn.Sequential(*stages), nn.Linear(inside, classes)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def made() -> ResNeSt:
            return cls(50, 5, width=8, blocks=(1, 2))

        def whole() -> ResNeSt:
            with torch.device("meta"):
                return cls()

        return [image_sample("resnest", made(), (33, 21), 3, output=(5,), again=made, published=(whole, 27.5))]

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The weights of the splits ``(b, splits, c, 1)`` of each block."""
        x, found = self.stem(images), {}
        for place, block in enumerate(self.blocks):
            if isinstance(block, SplitBlock):
                inner = torch.relu(block.norm1(block.first(x)))
                found[f"blocks.{place}"] = block.split.weights(inner, block.split.branches(inner))[..., 0]
            x = block(x)
        return found

    def forward(self, images: Tensor) -> Tensor:
        return self.classes(self.blocks(self.stem(images)).mean((2, 3)))
