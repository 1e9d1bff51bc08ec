"""Steps of SiMBA: a selective scan over the cells, networks of cells and their neighbours, and of frequencies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.attention import Attention
from regard.blocks.spatial import flat, image
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.networks.lm import Config
from regard.networks.simba import EinFFT
from regard.networks.stages.norms import ChannelNorm, norm_of
from regard.networks.stages.steps.base import Step


def selective(width: int, state: int, expand: int) -> Attention:
    """Mamba's layer: a selective scan of ``expand`` times the width, ``state`` numbers for each of its channels."""
    with torch.device("cpu"):  # its first steps are drawn as numbers, which a network of shapes alone has none of
        made = Config(1, width, "mamba", 1, None, state, expand * width).attention("mamba")
    return made.to(torch.get_default_device())


class Scan(Step):
    """Mamba over the normed cells, row by row: a cell reads those above it, and those left of it in its row.

    Args:
        width: c. state: numbers of the state for each channel. expand: of the scan's channels to c.

    Paper: Patro and Agneeswaran, arXiv 2403.15360; its norm is one of its own, whatever the network's.
    """

    normed = False

    def __init__(self, width: int, state: int = 64, expand: int = 2) -> None:
        super().__init__()
        self.norm, self.attention = ChannelNorm(width), selective(width, state, expand)

    def forward(self, x: Tensor) -> Tensor:
        return image(self.attention(flat(self.norm(x)), Layout(causal=True)), (x.shape[2], x.shape[3]))


class NeighbourMLP(Step):
    """``W_2 gelu(conv_3(W_1 x))``: two matrices over the channels of each cell, with a depthwise convolution between.

    Args:
        width: c. ratio: of the inner channels to c.

    Paper: Wang et al. (PVT v2), arXiv 2106.13797.
    """

    def __init__(self, width: int, ratio: float = 4.0) -> None:
        super().__init__()
        inner = int(width * ratio)
        self.first, self.second = nn.Linear(width, inner), nn.Linear(inner, width)
        self.convolution = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.gelu(self.convolution(self.first(x.movedim(1, -1)).movedim(-1, 1)))
        return self.second(inner.movedim(1, -1)).movedim(-1, 1)


class Frequencies(Step):
    """`EinFFT` over the cells as one line.

    Args:
        width: c. blocks: a divisor of it.
    """

    def __init__(self, width: int, blocks: int = 4) -> None:
        super().__init__()
        self.mix = EinFFT(width, blocks)

    def forward(self, x: Tensor) -> Tensor:
        return image(self.mix(flat(x)), (x.shape[2], x.shape[3]))


class Normed(Step):
    """The norm of the map, which follows in the map's place: at the end of a stage.

    Args:
        width: c. norm: see `norm_of`.
    """

    normed, alone = False, True

    def __init__(self, width: int, norm: str = "layer") -> None:
        super().__init__()
        self.norm = norm_of(norm, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class DeepStem(nn.Module):
    """A quarter of the resolution by convolutions 7 × 7 of stride 2, twice 3 × 3, and 3 × 3 of stride 2 with a norm.

    The first three have no bias, but a batch norm and relu each.

    Args:
        inside, width: channels. norm: behind the last. inner: channels between.
    """

    def __init__(self, inside: int, width: int, norm: str, inner: int = 32) -> None:
        super().__init__()
        sizes = ((inside, 7, 2), (inner, 3, 1), (inner, 3, 1))
        self.convolutions = nn.ModuleList(nn.Conv2d(c, inner, k, s, k // 2, bias=False) for c, k, s in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(inner) for _ in sizes)
        self.last, self.norm = nn.Conv2d(inner, width, 3, 2, 1), norm_of(norm, width)

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = torch.relu(norm(convolution(x)))
        return self.norm(self.last(x))


class Summarised(nn.Module):
    """Classes of the mean of the cells, which passes a block of its own, and of the cells themselves.

        c ← mean_n x_n;   c ← c + scan(c);   c ← c + mix(norm(c));   y = W norm(c) + ½ max_n W' norm(x_n)

    scan is of one token. In training W' learns the labels of cells, where there are such: `classes_of` gives both.

    Args:
        width: c. classes: to tell apart. norm: see `norm_of`. ratio: of the network of the mean, as `NeighbourMLP`
            without its convolution; None for `EinFFT` of ``blocks``. state, expand: of the scan. cells: whether cells
            say classes.

    Papers: Patro and Agneeswaran, arXiv 2403.15360; labels of cells: Jiang et al., 2104.10858.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        norm: str,
        ratio: float | None = 4.0,
        blocks: int = 4,
        state: int = 64,
        expand: int = 2,
        cells: bool = True,
    ) -> None:
        super().__init__()
        if ratio is not None and ratio <= 0:
            raise wrong("ratio", str(ratio), "above 0, or None for a network of frequencies")
        self.scan, self.mix_norm = Scan(width, state, expand), norm_of(norm, width)
        self.mix: nn.Module = EinFFT(width, blocks)
        if ratio is not None:
            inner = int(width * ratio)
            self.mix = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.norm, self.classes = norm_of(norm, width), nn.Linear(width, classes)
        self.of_cells = nn.Linear(width, classes) if cells else None

    def classes_of(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the mean says ``(b, classes)``, and each cell ``(b, cells, classes)``, None where cells say none."""
        mean = x.mean((2, 3), keepdim=True)
        mean = mean + self.scan(mean)
        mean = mean + image(self.mix(flat(self.mix_norm(mean))), (1, 1))
        says = self.classes(flat(self.norm(mean))[:, 0])
        return says, None if self.of_cells is None else self.of_cells(flat(self.norm(x)))

    def forward(self, x: Tensor) -> Tensor:
        says, cells = self.classes_of(x)
        return says if cells is None else says + 0.5 * cells.amax(1)
