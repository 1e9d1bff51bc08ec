"""The dynamic head: attention to levels, to cells and to channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.deform import deform_conv2d
from regard.featuremap.neck import Neck
from regard.featuremap.resize import Size, resize

GROUPS = 16


class DynamicRelu(nn.Module):
    """``max(a_1 x + b_1, a_2 x + b_2)`` with a, b of each channel from the map's means; at zero weights it is a relu.

    [a_1 b_1 a_2 b_2] from hard σ(W_2 relu(W_1 mean(x))):   a_1 = 2 (s − ½) + 1, a_2 = 2 (s − ½), b = s − ½
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width // 4), nn.Linear(width // 4, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        numbers = F.hardsigmoid(self.second(torch.relu(self.first(x.mean((2, 3)))))) - 0.5
        a1, b1, a2, b2 = numbers[:, :, None, None].chunk(4, 1)
        return torch.maximum((2 * a1 + 1) * x + b1, 2 * a2 * x + b2)


class NormedConvolution(nn.Module):
    """A 3 × 3 convolution without a bias, its taps moved and weighed where it is told so, and a group norm."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.norm = nn.GroupNorm(GROUPS, width)
        nn.init.normal_(self.convolution.weight, std=0.01)

    def forward(self, x: Tensor, moved: Tensor | None) -> Tensor:
        """``moved (b, 27, y, x)``: offsets and masks before their sigmoid, or None for the plain convolution."""
        if moved is None:
            return self.norm(self.convolution(x))
        weight, stride = self.convolution.weight, self.convolution.stride[0]
        mask = torch.sigmoid(moved[:, 18:])
        return self.norm(deform_conv2d(x, moved[:, :18], weight, mask=mask, stride=stride, padding=1))


class Block(nn.Module):
    """One step of the head on all levels."""

    def __init__(self, inside: int, width: int, levels: bool, cells: bool, tasks: bool) -> None:
        super().__init__()
        self.coarser, self.own, self.finer = (NormedConvolution(inside, width, stride) for stride in (1, 1, 2))
        self.offset = nn.Conv2d(inside, 27, 3, padding=1) if cells else None
        self.level = nn.Linear(width, 1) if levels else None
        self.task = DynamicRelu(width) if tasks else None

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [self.fused(level, maps) for level in range(len(maps))]

    def fused(self, level: int, maps: Sequence[Tensor]) -> Tensor:
        """The mean of what a level and its neighbours give, weighed, then squashed."""
        own = maps[level]
        moved = None if self.offset is None else self.offset(own)
        found = [self.own(own, moved)]
        if level > 0:
            found.append(self.finer(maps[level - 1], moved))
        if level < len(maps) - 1:
            found.append(self.coarser(resize(maps[level + 1], own, "aligned"), moved))
        mean = torch.stack([each * self.weight(each) for each in found]).mean(0)
        return mean if self.task is None else self.task(mean)

    def weight(self, x: Tensor) -> Tensor | float:
        """The weight of a level ``(b, 1, 1, 1)``: ``hard σ(relu(w · mean(x) + b))``, one without attention to
        levels."""
        if self.level is None:
            return 1.0
        return F.hardsigmoid(torch.relu(self.level(x.mean((2, 3)))))[:, :, None, None]


@published(
    "dyhead",
    family="featuremap",
    kind="neck",
    row=222,
    title="Dynamic Head: Unifying Object Detection Heads with Attentions",
    arxiv="2106.08322",
    year=2021,
    fidelity="hand values",
    claim=(
        Claim(
            "without its three attentions a block is the mean of its convolutions of neighbouring levels; its "
            "attention to channels is a relu where its last layer is zero",
            cells="necks.without_attentions",
            holds="necks.is_plain",
        ),
        Claim(
            "a block reads each level and its neighbours",
            cells="necks.depends(neck_text='dyhead(blocks=1)', same=True)",
            holds="necks.reads(wanted='01, 012, 123, 23')",
        ),
    ),
)
class DyHead(Neck):
    """Blocks in which each level is the mean of itself and its neighbours, weighed by level, cell and channel.

        z_i = norm(deform(W_i x_i)),   y = task(mean_i hard σ(relu(w · mean(z_i) + b)) z_i)

    i runs over the finer level (stride 2), the level itself and the coarser one, which is brought to the level's size
    first. Offsets and masks of the taps are a convolution of the level itself, for all three. Group norms have 16
    groups. ``task`` is a `DynamicRelu`.

    Parameters of a block: 27 c d + 6 d + 27 (9 c + 1) + d + 1 + d h + h + 4 h d + 4 d, h = d / 4.

    Args:
        channels: c, the same on each level. out: d, a multiple of 16. blocks: one after the other. levels, cells,
            tasks: whether there is each attention; without those to cells the convolutions are plain.

    Raises:
        ValueError: channels that differ, or a width that 16 does not divide.

    Paper: Dai et al., arXiv 2106.08322. In the authors' code the coarser level is convolved before it is brought to the
    level's size, under offsets that belong to other cells; here they are read where they belong.
    """

    def __init__(
        self,
        channels: Sequence[int],
        out: int,
        blocks: int = 6,
        levels: bool = True,
        cells: bool = True,
        tasks: bool = True,
    ) -> None:
        super().__init__(channels, out)
        if len(set(channels)) > 1 or out % GROUPS or blocks < 1:
            wanted = f"the same on each level, a multiple of {GROUPS}, one block at least"
            raise wrong("channels, out, blocks", f"{tuple(channels)}, {out}, {blocks}", wanted)
        widths = (channels[0], *(out,) * (blocks - 1))
        self.blocks = nn.ModuleList(Block(inside, out, levels, cells, tasks) for inside in widths)
        self.attentions = (levels, cells, tasks)

    def fused(self, maps: list[Tensor]) -> list[Tensor]:
        for block in self.blocks:
            maps = block(maps)
        return maps

    @property
    def reads(self) -> list[tuple[int, ...]]:
        count, far = len(self.channels), len(self.blocks)
        return [tuple(range(max(0, n - far), min(count, n + far + 1))) for n in range(count)]

    @property
    def inside(self) -> list[int]:
        """Channels that each block reads."""
        return [self.channels[0]] + [self.out] * (len(self.blocks) - 1)

    @property
    def parameter_count(self) -> int:
        (levels, cells, tasks), d, total = self.attentions, self.out, 0
        for c in self.inside:
            total += 27 * c * d + 6 * d + cells * 27 * (9 * c + 1) + levels * (d + 1)
            total += tasks * (d * (d // 4) + d // 4 + 4 * (d // 4) * d + 4 * d)
        return total

    def flops(self, given: Sequence[Size], batch: int = 1) -> int:
        (levels, cells, tasks), d, total = self.attentions, self.out, 0
        for c in self.inside:
            for level, (y, x) in enumerate(given):
                near = 1 + (level > 0) + (level < len(given) - 1)
                total += y * x * (near * 9 * c * d + cells * 9 * c * 27)
                total += levels * near * d + tasks * (d * (d // 4) + (d // 4) * 4 * d)
        return 2 * batch * total

    @classmethod
    def examples(cls) -> list[Sample]:
        return [
            Sample("dyhead(blocks=1)", cls((5, 5, 5), 32, 1)),
            Sample("two blocks, no cells", cls((32, 32, 32, 32), 32, 2, cells=False)),
            Sample("cells alone", cls((4, 4), 32, 1, levels=False, tasks=False)),
        ]
