"""Backbones that give five maps, of 4, 4, 8, 16 and 32 pixels a cell: Res2Net and Swin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.featuremap.parts.layers import Convolved
from regard.networks.stages.network import Stages
from regard.networks.stages.norms import ChannelNorm
from regard.networks.vision import swin
from regard.networks.vision.p2at import EXPANSION

SCALES, SHARE = 4, 26 / 64
"""Groups of channels in a block of Res2Net, and channels of each to a quarter of those that leave it."""
PLANS = ((1, 1), (2, 1), (2, 2), (2, 4))
"""Stride and rate of each stage of Res2Net."""


class ScalesBlock(nn.Module):
    """A bottleneck whose groups of channels are read one after the other, each with what the one before it gave.

        y_i = relu(norm(W_i (x_i + y_{i−1}))),   the last group as it is;   relu(norm(W' [y_1 … y_4]) + skip(x))

    In the first block of a stage groups are read alone and the last one is averaged over 3 × 3 cells.

    Args:
        inside, out: channels. stride, rate: of the W_i, 3 × 3. first: of a stage, whose skip averages cells.

    Paper: Gao et al. (Res2Net), arXiv 1904.01169, v1b.
    """

    def __init__(self, inside: int, out: int, stride: int = 1, rate: int = 1, first: bool = False) -> None:
        super().__init__()
        width = int(out // EXPANSION * SHARE)
        self.width, self.stride, self.alone = width, stride, first
        self.first = Convolved(inside, width * SCALES)
        self.groups = nn.ModuleList(Convolved(width, width, 3, stride, rate=rate) for _ in range(SCALES - 1))
        self.last = Convolved(width * SCALES, out, activation=None)
        self.skip = Convolved(inside, out, activation=None) if first else None

    def forward(self, x: Tensor) -> Tensor:
        groups, found = self.first(x).split(self.width, 1), []
        for group, layer in zip(groups, self.groups, strict=False):
            found.append(layer(group if self.alone or not found else found[-1] + group))
        found.append(F.avg_pool2d(groups[-1], 3, self.stride, 1) if self.alone else groups[-1])
        out = self.last(torch.cat(found, 1))
        if self.skip is None:
            return torch.relu(out + x)
        cells = F.avg_pool2d(x, self.stride, self.stride, ceil_mode=True, count_include_pad=False)
        return torch.relu(out + self.skip(cells))


class Res2Net(nn.Module):
    """Three convolutions, a pool and four stages of `ScalesBlock`, the last two of which read at a distance.

    Shapes: ``images (b, 3, y, x)`` -> five maps of 1, 4, 8, 16 and 32 times ``width`` channels.

    Args:
        blocks: of each stage, three of the last, whose rates are 4, 8 and 16. width: of the stem, 64.

    Paper: Gao et al., arXiv 1904.01169; v1b, 26 channels, four scales.
    """

    def __init__(self, blocks: Sequence[int] = (3, 4, 6, 3), width: int = 64) -> None:
        super().__init__()
        half = width // 2
        self.stem = nn.Sequential(Convolved(3, half, 3, 2), Convolved(half, half, 3), Convolved(half, width, 3))
        self.pool, self.stages, self.widths = nn.MaxPool2d(3, 2, 1), nn.ModuleList(), [width]
        for stage, (count, (stride, rate)) in enumerate(zip(blocks, PLANS, strict=True)):
            out = EXPANSION * width * 2**stage
            rates = [rate * (2**place if stage == len(PLANS) - 1 else 1) for place in range(count)]
            others = (ScalesBlock(out, out, rate=each) for each in rates[1:])
            self.stages.append(nn.Sequential(ScalesBlock(self.widths[-1], out, stride, rate, True), *others))
            self.widths.append(out)

    def forward(self, images: Tensor) -> list[Tensor]:
        found = [self.pool(self.stem(images))]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found


class SwinMaps(nn.Module):
    """The stem's map of a `swin` and the normed ones of its stages; windows move in all of these.

    Shapes: ``images (b, 3, y, x)`` -> five maps of 1, 1, 2, 4 and 8 times ``width`` channels.

    Args:
        depths, width, heads, side: see `swin.design`; the base network's for 384 × 384 pixels.
    """

    def __init__(self, depths: Sequence[int] = (2, 2, 18, 2), width: int = 128, heads: int = 4, side: int = 12) -> None:
        super().__init__()
        made = Stages(swin.design(depths, width, heads, side, last=True), 1)
        self.stem, self.stages = made.stem, made.stages
        self.norms = nn.ModuleList(ChannelNorm(each) for each in made.design.widths)
        self.widths = [width, *made.design.widths]

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images)
        found = [x]
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = stage(x)
            found.append(norm(x))
        return found
