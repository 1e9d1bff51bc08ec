"""Scale-equalizing pyramid convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.deform import deform_conv2d
from regard.featuremap.neck import Neck, NeckTraits
from regard.featuremap.resize import Size, halved, resize


class PartlyDeformable(nn.Module):
    """A 3 × 3 convolution that is deformable on every level above the finest, where the same weights read plainly.

    Args:
        width: channels in and out. stride: of the convolution. deformable: whether any level is.
    """

    def __init__(self, width: int, stride: int, deformable: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, stride, 1)
        self.offset = nn.Conv2d(width, 18, 3, stride, 1) if deformable else None
        nn.init.normal_(self.convolution.weight, std=0.01)
        for parameter in () if self.offset is None else self.offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, level: int, x: Tensor) -> Tensor:
        if self.offset is None or level == 0:
            return self.convolution(x)
        weight, bias = self.convolution.weight, self.convolution.bias
        return deform_conv2d(x, self.offset(x), weight, bias, stride=self.convolution.stride[0], padding=1)

    def flops(self, level: int, size: Size, batch: int) -> int:
        """Of an output of so many rows and columns on a level."""
        width, moved = self.convolution.out_channels, self.offset is not None and level > 0
        return 18 * batch * size[0] * size[1] * width * (width + (18 if moved else 0))


class Integrated(nn.BatchNorm1d):
    """A batch norm whose statistics are those of all levels together."""

    def over(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Each map, normed with the others."""
        cells = [each.shape[2] * each.shape[3] for each in maps]
        normed = self(torch.cat([each.flatten(2) for each in maps], 2)).split(cells, 2)
        return [part.unflatten(2, each.shape[2:]) for part, each in zip(normed, maps, strict=True)]


class PyramidConvolution(nn.Module):
    """``relu(norm(up(W_1 x_{l+1}) + W_0 x_l + W_−1 x_{l−1}))``, W_−1 of stride 2, the same weights on every level."""

    def __init__(self, width: int, deformable: bool) -> None:
        super().__init__()
        self.coarser, self.own, self.finer = (PartlyDeformable(width, stride, deformable) for stride in (1, 1, 2))
        self.norm = Integrated(width)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        found = []
        for level, own in enumerate(maps):
            mixed = self.own(level, own)
            if level > 0:
                mixed = mixed + resize(self.finer(level, maps[level - 1]), own)
            if level < len(maps) - 1:
                mixed = mixed + resize(self.coarser(level, maps[level + 1]), own, "aligned")
            found.append(mixed)
        return [F.relu(each) for each in self.norm.over(found)]

    def flops(self, level: int, given: Sequence[Size], batch: int) -> int:
        """Of what one level reads."""
        total = self.own.flops(level, given[level], batch)
        total += self.finer.flops(level, halved(given[level - 1]), batch) if level > 0 else 0
        return total + (self.coarser.flops(level, given[level + 1], batch) if level < len(given) - 1 else 0)


class Tower(nn.Module):
    """``relu(norm(W x_l))``, the same weights on every level, the norm over all of them."""

    def __init__(self, width: int, deformable: bool) -> None:
        super().__init__()
        self.convolution, self.norm = PartlyDeformable(width, 1, deformable), Integrated(width)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [F.relu(each) for each in self.norm.over([self.convolution(n, each) for n, each in enumerate(maps)])]


@published(
    "sepc",
    family="featuremap",
    kind="neck",
    row=177,
    title="Scale-Equalizing Pyramid Convolution for Object Detection",
    arxiv="2005.03101",
    year=2020,
    fidelity="hand values",
    claim=(
        Claim(
            "the norm over levels is that of their concatenation; untrained offsets give the plain pyramid convolution",
            cells="necks.integrated",
            holds="necks.begins_plain",
        ),
        Claim(
            "a level reads one level around it for each convolution",
            cells="necks.depends(neck_text='sepc(convolutions=1)', same=True)",
            holds="necks.reads(wanted='01, 012, 123, 23, 01, 012, 123, 23')",
        ),
    ),
)
class SEPC(Neck):
    """Convolutions over rows, columns and levels, then one for the classes and one for the boxes of a detector.

        x' = relu(norm(up(W_1 x_{l+1}) + W_0 x_l + down(W_−1 x_{l−1}))), several times;   relu(norm(W_c x')),
        relu(norm(W_b x'))

    The weights are those of every level, the norms of all levels together. Above the finest level taps are moved by
    offsets, which begin as zero; up is bilinear with aligned corners. The maps for classes come out first, then, fine
    to coarse again, those for boxes.

    Parameters: n (27 d² + 5 d) and 2 (9 d² + 3 d); each deformable convolution has 162 d + 18 more.

    Args:
        channels: d on each level. out: d. convolutions: n. deformable: all, the last two (``"last"``, SEPC-lite) or
        none.

    Raises:
        ValueError: other channels than ``out``, or another word.

    Paper: Wang et al., arXiv 2005.03101. The last two convolutions are padded, as the others; in the authors' code they
    are not, which moves every anchor by a cell.
    """

    traits = NeckTraits(batch_norm=True)

    def __init__(
        self,
        channels: Sequence[int],
        out: int,
        convolutions: int = 4,
        deformable: Literal["all", "last", "none"] = "all",
    ) -> None:
        super().__init__(channels, out)
        if set(channels) != {out} or convolutions < 1:
            raise wrong(
                "channels, out, convolutions", f"{tuple(channels)}, {out}, {convolutions}", "all the same, one at least"
            )
        if deformable not in ("all", "last", "none"):
            raise wrong("deformable", repr(deformable), "'all', 'last' or 'none'")
        inner = deformable == "all"
        self.pyramids = nn.ModuleList(PyramidConvolution(out, inner) for _ in range(convolutions))
        self.class_tower, self.box_tower = (Tower(out, deformable != "none") for _ in range(2))

    def fused(self, maps: list[Tensor]) -> list[Tensor]:
        for pyramid in self.pyramids:
            maps = pyramid(maps)
        return [*self.class_tower(maps), *self.box_tower(maps)]

    @property
    def reads(self) -> list[tuple[int, ...]]:
        levels, far = len(self.channels), len(self.pyramids)
        return 2 * [tuple(range(max(0, n - far), min(levels, n + far + 1))) for n in range(levels)]

    @property
    def stands(self) -> list[int]:
        return 2 * list(range(len(self.channels)))

    @property
    def convolutions(self) -> list[PartlyDeformable]:
        """Every one of them."""
        return [module for module in self.modules() if isinstance(module, PartlyDeformable)]

    @property
    def parameter_count(self) -> int:
        d, moved = self.out, sum(each.offset is not None for each in self.convolutions)
        return len(self.pyramids) * (27 * d * d + 5 * d) + 2 * (9 * d * d + 3 * d) + moved * (162 * d + 18)

    def flops(self, given: Sequence[Size], batch: int = 1) -> int:
        total = 0
        for level, size in enumerate(given):
            for pyramid in self.pyramids:
                if isinstance(pyramid, PyramidConvolution):
                    total += pyramid.flops(level, given, batch)
            total += sum(t.convolution.flops(level, size, batch) for t in (self.class_tower, self.box_tower))
        return total

    @classmethod
    def examples(cls) -> list[Sample]:
        return [
            Sample("sepc(convolutions=1)", cls((3, 3, 3), 3, 1)),
            Sample("sepc, the last alone", cls((3, 3), 3, 1, "last")),
            Sample("sepc, none", cls((4, 4, 4, 4), 4, 2, "none")),
        ]
