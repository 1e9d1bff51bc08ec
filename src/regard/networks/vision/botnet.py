"""BoTNet: a residual network whose last stage attends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.blocks.spatial import flat, image
from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.mechanisms.scored.relative_plane import RelativePlane
from regard.networks.base import Network
from regard.networks.stages.norms import ConvNorm
from regard.networks.vision.vit import image_sample
from regard.projections.base import Grouped, merge_heads


class PlaneAttention(nn.Module):
    """Attention of all cells with relative positions, in place of a convolution 3 × 3; no output matrix.

    Args:
        width: of the map. heads: each of width / heads. side: of the map that the tables are for.
    """

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        each = width // heads
        self.projection = Grouped(Sizes.even(width, heads))
        self.projection.out = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        self.mechanism = RelativePlane(each, side)

    def forward(self, x: Tensor) -> Tensor:
        grid, tokens = (x.shape[2], x.shape[3]), flat(x)
        return image(merge_heads(self.mechanism(*self.projection(tokens, tokens), Layout(grid=grid))), grid)


class Bottleneck(nn.Module):
    """``relu(norm(W_3 relu(norm(f(relu(norm(W_1 x)))))) + skip(x))``, f a convolution 3 × 3 or attention.

    With a stride, attention takes the means of 2 × 2 cells behind it.

    Args:
        inside, planes: channels that come in and of f; four times these come out. stride: 1 or 2. attention: its heads
            and the side of its tables, None for a convolution.
    """

    def __init__(self, inside: int, planes: int, stride: int, attention: tuple[int, int] | None) -> None:
        super().__init__()
        self.first, self.last = ConvNorm(inside, planes), ConvNorm(planes, 4 * planes)
        if attention is None:
            self.middle: nn.Module = ConvNorm(planes, planes, 3, stride)
        else:
            half = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
            self.middle = nn.Sequential(PlaneAttention(planes, *attention), half, nn.BatchNorm2d(planes))
        same = stride == 1 and inside == 4 * planes
        self.skip = nn.Identity() if same else ConvNorm(inside, 4 * planes, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.middle(torch.relu(self.first(x))))
        return torch.relu(self.last(inner) + self.skip(x))


@published(
    "botnet_network",
    family="vit",
    kind="network",
    title="Bottleneck Transformers for Visual Recognition",
    arxiv="2101.11605",
    year=2021,
    fidelity="hand values",
    claim=Claim(
        "with attention in the last stage ResNet-50 loses a fifth of its parameters: 20.8 million",
        cells="stages.botnet",
        holds="stages.is_botnet",
    ),
)
class BoTNet(Network):
    """A residual network of bottlenecks whose last stage attends to all cells in place of its convolutions 3 × 3.

    Shapes: ``images (b, 3, y, x)`` -> ``(b, classes)``, of any height and width.

    Args:
        classes: to tell apart. blocks: of each stage. width: of the first stage's inner maps. heads: of attention.
            side: of the map that comes into the last stage, for the tables: 14 of images of 224 pixels. attends: False
            for the residual network itself. seed: of the weights.

    Paper: Srinivas et al., arXiv 2101.11605; ResNet: He et al., 1512.03385, with the stride in the convolution 3 × 3.
    """

    def __init__(
        self,
        classes: int = 1000,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        heads: int = 4,
        side: int = 14,
        attends: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem, inside, made = ConvNorm(3, width, 7, 2), width, []
            for stage, count in enumerate(blocks):
                for block in range(count):
                    stride, last = (2 if stage and not block else 1), stage == len(blocks) - 1
                    tables = (heads, side if stride > 1 or stage == 0 else -(-side // 2))
                    planes = width * 2**stage
                    made.append(Bottleneck(inside, planes, stride, tables if last and attends else None))
                    inside = 4 * planes
            self.blocks, self.classes = nn.Sequential(*made), nn.Linear(inside, classes)
        self.pool = nn.MaxPool2d(3, 2, 1)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def whole() -> BoTNet:
            with torch.device("meta"):
                return cls()

        small = cls(5, (1, 2), 8, 2, 4)
        return [image_sample("botnet", small, (33, 21), 3, output=(5,), published=(whole, 20.9))]

    def forward(self, images: Tensor) -> Tensor:
        return self.classes(self.blocks(self.pool(torch.relu(self.stem(images)))).mean((2, 3)))
