"""FPENet: blocks of growing dilations, and levels that gate each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.resize import resize
from regard.networks.base import Network
from regard.networks.stages.norms import ConvNorm
from regard.networks.vision.vit import image_sample

DILATIONS = (1, 2, 4, 8)


class PyramidBlock(nn.Module):
    """Groups of channels in turn through wider kernels, each with what the one before it gave.

        z = relu(norm(W x)),   y_s = relu(norm(conv_s(z_s + y_{s−1}))),   out = relu(norm(W' [y_1 … y_4]) + skip(x))

    conv_s are depthwise, 3 × 3, of dilation 1, 2, 4, 8.

    Args:
        inside, out: channels; four divides the first. stride: of W. ratio: of the inner channels to ``inside``.
    """

    def __init__(self, inside: int, out: int, stride: int = 1, ratio: int = 1) -> None:
        super().__init__()
        inner, each = inside * ratio, inside * ratio // len(DILATIONS)
        if inner % len(DILATIONS):
            raise wrong("width", str(inside), f"a multiple of {len(DILATIONS)}")
        self.first, self.last = ConvNorm(inside, inner, stride=stride), ConvNorm(inner, out)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(each, each, 3, padding=d, dilation=d, groups=each, bias=False) for d in DILATIONS
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(each) for _ in DILATIONS)
        self.skip = nn.Identity() if stride == 1 and inside == out else ConvNorm(inside, out, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        parts = torch.relu(self.first(x)).chunk(len(DILATIONS), 1)
        for part, convolution, norm in zip(parts, self.convolutions, self.norms, strict=True):
            found.append(torch.relu(norm(convolution(part + found[-1] if found else part))))
        return torch.relu(self.last(torch.cat(found, 1)) + self.skip(x))


class MutualEmbedding(nn.Module):
    """Two levels gate each other: cells of the finer one gate the coarser, channels of the coarser one the finer.

        y = σ(a mean_c low) ⊙ up(high) + σ(relu(W mean_yx high)) ⊙ low,   low, high = norm(W' x)

    Args:
        high, low, out: channels of the coarser and the finer map, and of what comes out.
    """

    def __init__(self, high: int, low: int, out: int) -> None:
        super().__init__()
        self.high, self.low = ConvNorm(high, out), ConvNorm(low, out)
        self.cells, self.channels = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(out, out, 1, bias=False)

    def parts(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Both normed maps, and what each gives to the other: ``yx (b, 1, y, x)``, ``c (b, c, 1, 1)``."""
        high, low = self.high(high), self.low(low)
        channels = torch.relu(self.channels(high.mean((2, 3), keepdim=True)))
        return high, low, {"yx": torch.sigmoid(self.cells(low.mean(1, keepdim=True))), "c": torch.sigmoid(channels)}

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        high, low, gates = self.parts(high, low)
        return gates["yx"] * resize(high, low, "aligned") + gates["c"] * low


@published(
    "fpenet",
    family="featuremap",
    kind="network",
    row=261,
    title="Feature Pyramid Encoding Network for Real-time Semantic Segmentation",
    arxiv="1909.08599",
    year=2019,
    fidelity="third-party code",
    claim=Claim(
        "at most 0.4 million parameters",
        cells="map_networks.fpenet",
        holds="map_networks.is_fpenet",
    ),
)
class FPENet(Network):
    """Three stages of pyramid blocks, whose levels are put together by gates on each other, and classes of each cell.

    Shapes: ``images (b, 3, y, x)`` -> ``(b, classes, y, x)``, of any height and width.

    Args:
        classes: to tell apart. width: channels of the first stage, doubled by each of the others. blocks: of each
            stage. seed: of the weights.

    Paper: Liu and Yin, arXiv 1909.08599, who print 0.4 million parameters; public code of it, of width 16, has 115,125
    for 19 classes.
    """

    def __init__(self, classes: int = 19, width: int = 16, blocks: Sequence[int] = (1, 3, 9), seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem, self.stages, inside = ConvNorm(3, width, 3, 2), nn.ModuleList(), width
            for stage, count in enumerate(blocks):
                out = width * 2**stage
                first = PyramidBlock(inside, out, 2, 4) if stage else PyramidBlock(inside, out)
                self.stages.append(nn.Sequential(first, *(PyramidBlock(out, out) for _ in range(count - 1))))
                inside = out
            self.embeddings = nn.ModuleList(
                (MutualEmbedding(4 * width, 2 * width, 4 * width), MutualEmbedding(4 * width, width, 2 * width))
            )
            self.classes = nn.Conv2d(2 * width, classes, 1)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [image_sample("fpenet", cls(5, 8, (1, 2, 1)), (33, 22), 3, output=(5, 33, 22))]

    def levels(self, images: Tensor) -> list[Tensor]:
        """The maps of each stage, whose first block's output is added to that of the last."""
        x, found = torch.relu(self.stem(images)), []
        for place, stage in enumerate(self.stages):
            first, *rest = stage.children()
            head = x = first(x)
            for block in rest:
                x = block(x)
            x = x + head if place else x
            found.append(x)
        return found

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What the levels multiply each other by: of cells ``(b, 1, y, x)`` and of channels ``(b, c, 1, 1)``."""
        fine, middle, x = self.levels(images)
        found = {}
        pairs: Any = zip(self.embeddings, (middle, fine), strict=True)
        for place, (embedding, low) in enumerate(pairs):
            gates = embedding.parts(x, low)[2]
            found |= {f"embeddings.{place}.{axes}": gate for axes, gate in gates.items()}
            x = embedding(x, low)
        return found

    def forward(self, images: Tensor) -> Tensor:
        fine, middle, coarse = self.levels(images)
        x = self.embeddings[1](self.embeddings[0](coarse, middle), fine)
        return resize(self.classes(x), (images.shape[2], images.shape[3]), "aligned")
