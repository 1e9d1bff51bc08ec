"""Switchable atrous convolution, the mixture of DetectoRS."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.featuremap.deform import deform_conv2d
from regard.featuremap.gate import MapShape
from regard.featuremap.mixture import Mixture, MixtureTraits


@published(
    "switchable_atrous",
    family="featuremap",
    kind="mixture",
    title="DetectoRS: Detecting Objects with Recursive Feature Pyramid and Switchable Atrous Convolution",
    arxiv="2006.02334",
    year=2020,
    fidelity="hand values",
    aliases=("sac",),
    claim=Claim(
        "begun from a convolution it is that convolution; with its switch at zero it is that of three times the rate",
        cells="mixtures.switched",
        holds="mixtures.is_both_convolutions",
    ),
)
class SwitchableAtrous(Mixture):
    """One convolution at two rates, the second with a correction of its weights, mixed cell by cell by a switch.

        y = S ⊙ conv(x, w, rate 1) + (1 − S) ⊙ conv(x, w + Δ, rate 3),   S = s · mean_5×5(x) + b

    w is standardised, `gamma` (v − mean v) / std v + `beta`; before and after stands a global context,
    x + P mean(x), which begins as zero, as Δ and s do; b begins as one, so that S is one. S has no squash: its range is
    not bounded.

    Parameters: c c' k² twice, c + 1 for the switch, c² + c + c'² + c' for the contexts; deformable, 4 k² (9 c + 1)
    more.

    Args:
        channels: c. out: c', None for c. kernel: k, odd. stride: of the convolution. deformable: the taps of both
            stand where two convolutions of the switch's means move them, which begin as zero.

    Paper: Qiao et al., arXiv 2006.02334. The means of the switch are over maps padded by reflection, as in the authors'
    code; where a map is too small to reflect, by its border.
    """

    traits = MixtureTraits(low=float("-inf"), high=float("inf"))

    def __init__(
        self, channels: int, out: int | None = None, kernel: int = 3, stride: int = 1, deformable: bool = False
    ) -> None:
        super().__init__(channels)
        self.out, self.kernel, self.stride = out or channels, kernel, stride
        self.weight = nn.Parameter(torch.empty(self.out, channels, kernel, kernel))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.difference = nn.Parameter(torch.zeros_like(self.weight))
        self.switch = nn.Conv2d(channels, 1, 1, stride)
        self.earlier, self.later = nn.Conv2d(channels, channels, 1), nn.Conv2d(self.out, self.out, 1)
        moves = range(2 if deformable else 0)
        self.offsets = nn.ModuleList(nn.Conv2d(channels, 2 * kernel**2, 3, stride, 1) for _ in moves)
        for layer in (self.switch, self.earlier, self.later, *self.offsets):
            for parameter in layer.parameters():
                nn.init.constant_(parameter, float(layer is self.switch and parameter.dim() == 1))
        self.register_buffer("gamma", torch.ones(self.out, 1, 1, 1))
        self.register_buffer("beta", torch.zeros(self.out, 1, 1, 1))

    gamma: Tensor
    beta: Tensor

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> Self:
        """What begins as a convolution without bias, dilation and groups, whose weights γ and β keep."""
        made = cls(convolution.in_channels, convolution.out_channels, convolution.kernel_size[0], convolution.stride[0])
        made = made.to(convolution.weight.dtype)
        with torch.no_grad():
            made.weight.copy_(convolution.weight)
            made.gamma.copy_(made.deviation())
            made.beta.copy_(convolution.weight.mean((1, 2, 3), keepdim=True))
        return made

    def deviation(self) -> Tensor:
        """The standard deviation of each filter ``(c', 1, 1, 1)``."""
        return deviation(self.weight)

    def standardised(self) -> Tensor:
        """w of the definition."""
        return standardised(self.weight, self.gamma, self.beta)

    @staticmethod
    def means(x: Tensor) -> Tensor:
        """The mean of 5 × 5 cells around each."""
        mode = "reflect" if min(x.shape[2:]) > 2 else "replicate"
        return F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode), 5, 1)

    def before(self, x: Tensor) -> Tensor:
        return x + self.earlier(x.mean((2, 3), keepdim=True))

    def after(self, mixed: Tensor) -> Tensor:
        return mixed + self.later(mixed.mean((2, 3), keepdim=True))

    def branches(self, x: Tensor) -> list[Tensor]:
        weight, half, found = self.standardised(), self.kernel // 2, []
        for place, (rate, kernel) in enumerate(((1, weight), (3, weight + self.difference))):
            if self.offsets:
                offset = self.offsets[place](self.means(x))
                pad = rate * half
                found.append(deform_conv2d(x, offset, kernel, stride=self.stride, padding=pad, dilation=rate))
            else:
                found.append(F.conv2d(x, kernel, stride=self.stride, padding=rate * half, dilation=rate))
        return found

    def weights(self, x: Tensor, branches: list[Tensor]) -> Tensor:
        switch = self.switch(self.means(x))
        return torch.stack((switch, 1 - switch), 1)

    @property
    def parameter_count(self) -> int:
        c, out = self.channels, self.out
        moved = len(self.offsets) * 2 * self.kernel**2 * (9 * c + 1)
        return 2 * c * out * self.kernel**2 + c + 1 + c * c + c + out * out + out + moved

    def flops(self, shape: MapShape) -> int:
        cells = -(-shape[2] // self.stride) * -(-shape[3] // self.stride)
        c, out = self.channels, self.out
        moved = len(self.offsets) * 2 * self.kernel**2 * 9
        return 2 * shape[0] * (cells * c * (2 * out * self.kernel**2 + 1 + moved) + c * c + out * out)

    @classmethod
    def examples(cls) -> list[Sample]:
        return [
            Sample("switchable_atrous", cls(4)),
            Sample("stride 2", cls(3, 5, stride=2)),
            Sample("deformable", cls(3, 2, stride=2, deformable=True)),
        ]


class StandardisedConvolution(nn.Conv2d):
    """A convolution without a bias whose filters are standardised: ``γ (v − mean v) / std v + β``, γ and β fixed.

    Args:
        inside, out: channels. kernel: odd. stride: of the convolution.
    """

    def __init__(self, inside: int, out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(inside, out, kernel, stride, kernel // 2, bias=False)
        self.register_buffer("gamma", torch.ones(out, 1, 1, 1))
        self.register_buffer("beta", torch.zeros(out, 1, 1, 1))

    gamma: Tensor
    beta: Tensor

    def forward(self, input: Tensor) -> Tensor:
        weight = standardised(self.weight, self.gamma, self.beta)
        return F.conv2d(input, weight, None, self.stride, self.padding)


def deviation(weight: Tensor) -> Tensor:
    """The standard deviation of each filter ``(c', 1, 1, 1)``."""
    return (weight.flatten(1).var(1) + 1e-5).sqrt()[:, None, None, None]


def standardised(weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """``γ (v − mean v) / std v + β`` of each filter v."""
    return gamma * (weight - weight.mean((1, 2, 3), keepdim=True)) / deviation(weight) + beta
