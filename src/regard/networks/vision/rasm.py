"""RASM: shadows are removed by attention from each cell to a fixed region around it, which lit cells are part of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.build import gate
from regard.networks.base import Network
from regard.networks.stages.norms import norm_of
from regard.networks.stages.steps.attention import Attend
from regard.networks.stages.steps.base import Added, Step

LEVELS = 4
"""Resolutions, each half of the one before it."""


class GatedConvolutions(nn.Module):
    """``x + SE(conv(prelu(conv(x))))``: two depthwise convolutions and squeeze and excitation, without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False) for _ in range(2))
        self.between, self.gate = nn.PReLU(), gate("se(ratio=4, bias=False)")(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate(self.second(self.between(self.first(x))))


class Region(Step):
    """Attention of every cell to the region around it, if there is a mechanism, and `GatedConvolutions`.

    Args:
        width: c. heads: of the attention. mechanism: its text; None for the convolutions alone.
    """

    def __init__(self, width: int, heads: int, mechanism: str | None) -> None:
        super().__init__()
        self.attend = nn.Identity() if mechanism is None else Attend(width, heads, mechanism)
        self.convolutions = GatedConvolutions(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolutions(self.attend(x))


class LocalMLP(Step):
    """``W_2 gelu(conv(gelu(W_1 x)))``: a perceptron of each cell with a depthwise convolution between its layers.

    Args:
        width: c. ratio: inner channels for each of them.

    Paper: Wang et al. (Uformer), arXiv 2106.03106.
    """

    def __init__(self, width: int, ratio: float = 4) -> None:
        super().__init__()
        inner = int(width * ratio)
        self.first, self.second = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)
        self.near = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.near(F.gelu(self.first(x)))))


@published(
    "rasm",
    family="featuremap",
    kind="network",
    row=33,
    title="Regional Attention for Shadow Removal",
    arxiv="2411.14201",
    year=2024,
    aliases=("regional_attention",),
    fidelity="authors' code",
    claim=(
        Claim(
            "where a soft shadow falls on drawn textures, pixels are at least 0.3 dB closer to the lit ones than with "
            "attention in windows of as many cells, in the mean of three seeds",
            cells="shadows.removed",
            holds="shadows.is_above_windows",
        ),
        Claim(
            "shadowed cells at the border of the shadow pay at least half of their attention to lit cells",
            cells="shadows.lit",
            holds="shadows.looks_at_light",
        ),
    ),
)
class RASM(Network):
    """A U of four resolutions that adds to an image what its shadow took, with attention at the coarser two.

        y = x + C_out U(lrelu(C_in [x, m]))

    Blocks are ``x + region(norm(x))``, `Region`, then ``x + mlp(norm(x))``, `LocalMLP`. Attention is `nat`,
    dilated, with a bias of each offset. Only the first convolution sees the mask m. Steps down are 4 × 4 convolutions,
    steps up transposed ones of 2 × 2, behind which the map of the way down is put beside.

    Shapes: ``images (b, 3, y, x)``, ``shadow (b, 1, y, x)`` -> ``(b, 3, y, x)``, of any height and width: edges are
    repeated to whole multiples of eight, and cut off again.

    Args:
        width: channels of the finest maps; they double with each step down. depth: blocks of each of the seven stages.
        heads: of the attention on the way down, at the bottom, and on the way up. mechanism: of the attention.
        drop: the share of images whose step is left out in training, of the last block down and of the bottom. seed:
            of the weights.

    Raises:
        ValueError: heads that are not three.

    Paper: Liu et al., arXiv 2411.14201. Their code takes the mask's pooled maps to every block and uses none of them.
    """

    def __init__(
        self,
        width: int = 32,
        depth: int = 2,
        heads: Sequence[int] = (4, 16, 8),
        mechanism: str = "nat(axes=2, window=11, dilation=2)",
        drop: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(heads) != 3:
            raise wrong("heads", str(tuple(heads)), "three numbers: down, at the bottom, up")
        down = torch.linspace(0, drop, depth * LEVELS, device="cpu").tolist()  # as theirs, of four stages down
        rates = [down[depth * stage : depth * (stage + 1)] for stage in range(3)]
        up = down[::-1][depth:]  # theirs skip those of the bottom
        rates += [[drop] * depth, *(up[depth * stage : depth * (stage + 1)] for stage in range(3))]
        widths = [width * scale for scale in (1, 2, 4, 8, 8, 4, 2)]
        attention = {2: heads[0], 3: heads[1], 4: heads[2]}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Conv2d(4, width, 3, padding=1)
            self.stages = nn.ModuleList(
                self.stage(widths[place], attention.get(place), mechanism, rates[place]) for place in range(7)
            )
            self.down = nn.ModuleList(nn.Conv2d(w, 2 * w, 4, 2, 1) for w in widths[:3])
            ups = ((8, 4), (8, 2), (4, 1))
            self.up = nn.ModuleList(nn.ConvTranspose2d(a * width, b * width, 2, 2) for a, b in ups)
            self.last = nn.Conv2d(2 * width, 3, 3, padding=1)
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    @staticmethod
    def stage(width: int, heads: int | None, mechanism: str, rates: Sequence[float]) -> nn.Sequential:
        """Blocks at one resolution, one for each rate at which they are left out; with attention if there are heads."""
        steps: list[nn.Module] = []
        for rate in rates:
            for step in (Region(width, heads or 1, mechanism if heads else None), LocalMLP(width)):
                steps.append(Added(step, norm_of("layer", width), width, None, rate))
        return nn.Sequential(*steps)

    def forward(self, images: Tensor, shadow: Tensor) -> Tensor:
        if images.dim() != 4 or shadow.shape != (images.shape[0], 1, *images.shape[2:]):
            raise wrong("shadow", f"shape {tuple(shadow.shape)}", f"one channel for each of {tuple(images.shape)}")
        y, x = images.shape[2:]
        whole = 2 ** (LEVELS - 1)
        both = F.pad(torch.cat([images, shadow], 1), (0, -x % whole, 0, -y % whole), mode="replicate")
        maps, kept = F.leaky_relu(self.first(both)), []
        for stage, down in zip(self.stages, self.down, strict=False):
            kept.append(stage(maps))
            maps = down(kept[-1])
        maps = self.stages[3](maps)
        for stage, up in zip(self.stages[4:], self.up, strict=True):
            maps = stage(torch.cat([up(maps), kept.pop()], 1))
        return images + self.last(maps)[:, :, :y, :x]

    @classmethod
    def examples(cls) -> list[Sample]:
        small = cls(8, 1, (2, 4, 2), "nat(axes=2, window=3, dilation=2)", seed=1)  # no gate is dead from the start
        return [Sample("small", small, {"inputs": partial(shadowed, (19, 26)), "output": (3, 19, 26)})]


def shadowed(size: tuple[int, int], batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random images and masks."""
    generator = Generator().manual_seed(seed)
    images, mask = torch.randn(batch, 3, *size, generator=generator), torch.rand(batch, 1, *size, generator=generator)
    return images, (mask > 0.5).float()
