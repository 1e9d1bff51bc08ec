"""Sparse decomposed large separable kernel attention, the gate of BEVANet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.gate import Factors, Gate, GateTraits, MapShape

KERNELS = {7: (3, 3, 2), 11: (3, 5, 2), 23: (5, 7, 3), 35: (5, 11, 3)}
"""Of each span: the side of the square kernel, the taps of the strips, their dilation."""


class Selection(nn.Module):
    """Three maps summed under weights of their channels and of their cells, which their sum decides (CKS).

        Σ_i σ(u_i) ⊙ σ(t_i) ⊙ b_i,   u_i of the sum's means, t of its mean and maximum over channels, 7 × 7

    Parameters: c h + 13 h + 3 (h c + 13 c) + 297, h = max(c / 16, 32).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.hidden = channels, max(channels // 16, 32)
        self.reduce = self.step(channels, self.hidden)
        self.expand = nn.ModuleList(self.step(self.hidden, channels) for _ in range(3))
        self.cells = nn.Conv2d(2, 3, 7, padding=3)

    @staticmethod
    def step(inside: int, out: int) -> nn.Sequential:
        """A matrix, a depthwise 3 × 3 convolution, a norm and a relu."""
        depthwise = nn.Conv2d(out, out, 3, padding=1, groups=out)
        return nn.Sequential(nn.Conv2d(inside, out, 1), depthwise, nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        total = maps[0] + maps[1] + maps[2]
        hidden = self.reduce(total.mean((2, 3), keepdim=True))
        both = torch.cat((total.mean(1, keepdim=True), total.amax(1, keepdim=True)), 1)
        cells = torch.sigmoid(self.cells(both)).split(1, 1)
        steps = zip(maps, self.expand, cells, strict=True)
        small, high, wide = (each * torch.sigmoid(expand(hidden)) * cell for each, expand, cell in steps)
        return small + high + wide

    @property
    def parameter_count(self) -> int:
        """By formula."""
        c, h = self.channels, self.hidden
        return c * h + 13 * h + 3 * (h * c + 13 * c) + 297

    def flops(self, shape: MapShape) -> int:
        """Two for each multiply-add."""
        c, h = self.channels, self.hidden
        return 2 * shape[0] * (4 * c * h + 9 * h + 27 * c + 294 * shape[2] * shape[3])


@published(
    "sdlska",
    family="featuremap",
    kind="gate",
    row=65,
    title="BEVANet: Bilateral Efficient Visual Attention Network for Real-Time Semantic Segmentation",
    arxiv="2508.07300",
    year=2025,
    fidelity="authors' code",
    claim=Claim(
        "where the selection is held, a factor depends on a cross of 35 × 5 and 5 × 35 cells, not on a square",
        cells="featuremap.large_kernel",
        holds="featuremap.is_the_cross",
    ),
)
class LargeKernel(Gate):
    """Every entry is weighed by convolutions of large span: a square, and strips of it with holes, selected and mixed.

        y = x ⊙ W select(s, R s, C s) + b,   s = S x

    S, R and C are depthwise: 5 × 5, 1 × 11 and 11 × 1 with dilation 3 for a span of 35. The factor is not bounded.

    Parameters: c (s² + 2 t + 3) + c² + c and those of `Selection`, s and t the taps of square and strips.

    Args:
        channels: c. kernel: the span: 7, 11, 23 or 35.

    Raises:
        ValueError: another span.

    Paper: Huang et al., arXiv 2508.07300; the network around it is `bevanet`.
    """

    traits = GateTraits(low=float("-inf"), high=float("inf"), batch_norm=True)

    def __init__(self, channels: int, kernel: int = 35) -> None:
        super().__init__(channels)
        if kernel not in KERNELS:
            raise wrong("kernel", str(kernel), f"one of {', '.join(map(str, KERNELS))}")
        self.side, self.taps, dilation = KERNELS[kernel]
        pad = self.taps // 2 * dilation
        self.square = nn.Conv2d(channels, channels, self.side, padding=self.side // 2, groups=channels)
        self.row = nn.Conv2d(channels, channels, (1, self.taps), 1, (0, pad), dilation, channels)
        self.column = nn.Conv2d(channels, channels, (self.taps, 1), 1, (pad, 0), dilation, channels)
        self.mix, self.select = nn.Conv2d(channels, channels, 1), Selection(channels)

    def factors(self, x: Tensor, past: Sequence[Tensor] | None = None) -> Factors:
        near = self.square(x)
        return {"cyx": self.mix(self.select((near, self.row(near), self.column(near))))}

    @property
    def parameter_count(self) -> int:
        c = self.channels
        return c * (self.side**2 + 2 * self.taps + 3) + c * c + c + self.select.parameter_count

    def flops(self, shape: MapShape) -> int:
        cells, c = shape[0] * shape[2] * shape[3], self.channels
        return 2 * cells * c * (self.side**2 + 2 * self.taps + c) + self.select.flops(shape)

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("sdlska(kernel=7)", cls(6, 7))]
