"""What OverLoCK is made of: large kernels trained as several, and blocks that a context leads."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.spatial import image
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.mechanisms.sparse.contmix import ContextMixing
from regard.networks.stages.norms import ChannelNorm, ConvNorm

DILATED = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
    9: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    19: ((5, 1), (7, 1), (9, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}
"""Of each large kernel the sides and dilations of the smaller ones beside it."""


def depthwise(width: int, side: int, dilation: int = 1, bias: bool = False) -> nn.Conv2d:
    """A depthwise convolution that keeps the map's size."""
    return nn.Conv2d(width, width, side, 1, side // 2 * dilation, dilation, width, bias=bias)


class LargeKernels(nn.Module):
    """``Σ_r norm_r(conv_r x)``: a large depthwise kernel and smaller, dilated ones beside it, each with a norm.

    Args:
        width: c. side: of the large kernel, one of `DILATED`.

    Raises:
        ValueError: another side.

    Paper: Ding et al. (UniRepLKNet), arXiv 2311.15599.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        if side not in DILATED:
            raise wrong("side", str(side), f"one of {', '.join(map(str, DILATED))}")
        sizes = ((side, 1), *DILATED[side])
        self.convolutions = nn.ModuleList(depthwise(width, k, dilation) for k, dilation in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in sizes)

    def forward(self, x: Tensor) -> Tensor:
        found = [norm(conv(x)) for norm, conv in zip(self.norms, self.convolutions, strict=True)]
        return torch.stack(found).sum(0)

    @torch.no_grad()
    def folded(self) -> nn.Conv2d:
        """One convolution that is all of them, as in evaluation."""
        large: Any = self.convolutions[0]
        side = large.kernel_size[0]
        made = depthwise(large.in_channels, side, bias=True).to(large.weight)
        bias: Any = made.bias
        for parameter in (made.weight, bias):
            parameter.zero_()
        pairs: Any = zip(self.convolutions, self.norms, strict=True)
        for conv, norm in pairs:
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            (k, dilation), weight = (conv.kernel_size[0], conv.dilation[0]), conv.weight * scale[:, None, None, None]
            first = side // 2 - k // 2 * dilation
            places = slice(first, side - first, dilation)
            made.weight[:, :, places, places] += weight
            bias += norm.bias - norm.running_mean * scale
        return made.train(self.training)


class Residual(nn.Module):
    """``x + conv(x)``, depthwise 3 × 3 with a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = depthwise(width, 3, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolution(x)


class Squeeze(nn.Module):
    """Channels weighed by two layers over their means: squeeze and excitation with 16 inner channels at least."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(16, width // 8)
        self.first, self.second = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def factor(self, x: Tensor) -> Tensor:
        """``(b, c, 1, 1)``."""
        return torch.sigmoid(self.second(F.gelu(self.first(x.mean((2, 3), keepdim=True)))))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor(x)


class Response(nn.Module):
    """``(1 + γ ⊙ g / mean_c g) ⊙ x + β``, g the norm of each channel over the map; γ and β begin at zero.

    Paper: Woo et al. (ConvNeXt V2), arXiv 2301.00808.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.zeros(width, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        return (self.gamma * norm / (norm.mean(1, keepdim=True) + 1e-6) + 1) * x + self.beta


class Scale(nn.Module):
    """``γ ⊙ x + β`` for each channel; it begins as x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width, 1, 1)), nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x + self.bias


class Perceptron(nn.Sequential):
    """``W_2 response(residual(gelu(W_1 x)))`` of each cell and its neighbours."""

    def __init__(self, inside: int, inner: int) -> None:
        first, last = nn.Conv2d(inside, inner, 1), nn.Conv2d(inner, inside, 1)
        super().__init__(first, nn.GELU(), Residual(inner), Response(inner), last)


class LargeKernelBlock(nn.Module):
    """``x ← residual(x),   y = scale(x) + perceptron(squeeze(norm(large(norm(x)))))``.

    Args:
        width: c. side: of the large kernel. ratio: of the perceptron. scaled: whether there is a scale.
    """

    def __init__(self, width: int, side: int, ratio: float, scaled: bool) -> None:
        super().__init__()
        self.near, self.norm = Residual(width), ChannelNorm(width, 1e-6)
        self.large, self.after, self.squeeze = LargeKernels(width, side), nn.BatchNorm2d(width), Squeeze(width)
        self.perceptron, self.scale = Perceptron(width, int(width * ratio)), Scale(width) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.near(x)
        return self.scale(x) + self.perceptron(self.squeeze(self.after(self.large(self.norm(x)))))


class ContextBlock(nn.Module):
    """A block of dynamic kernels, which the map's likeness to its context makes: see `ContextMixing`.

        z = residual([x, h]),   h = scale(context) + scale(context at first) but in the first block
        x̂ = fusion(norm(z)),   y = W norm(gate(x̂) ⊙ squeeze(norm W' contmix(q, k, x̂) + norm large(x̂)))
        z ← scale(z) + y,   z ← residual(z),   z ← scale(z) + perceptron(norm(z))

    q is of the map's part of norm(z), k of its context's. A map that is smaller than the window is enlarged to it.

    Args:
        width, context: channels of the map and of its context. side: of the large kernel and the larger window. heads:
            of each window, half. ratio: of the perceptron. first: whether it is the first block. small: the smaller
            window.
    """

    def __init__(
        self, width: int, context: int, side: int, heads: int, ratio: float, first: bool = False, small: int = 5
    ) -> None:
        super().__init__()
        both, half, groups = width + context, width // 2, 2 * heads
        if width % (2 * groups):
            raise wrong("heads", str(heads), f"a divisor of a quarter of the width {width}")
        self.split, self.side, self.groups = (width, context), side, groups
        self.scales = nn.ModuleList(() if first else (Scale(context), Scale(context)))
        self.near, self.norm = Residual(both), ChannelNorm(both, 1e-6)
        mixed = nn.Conv2d(both, both, 3, padding=1, groups=both), nn.BatchNorm2d(both), nn.GELU()
        self.fusion = nn.Sequential(*mixed, nn.Conv2d(both, width, 1), Response(width))
        self.query, self.key = ConvNorm(width, half), ConvNorm(context, half)
        scale = (width // groups) ** -0.5
        self.mechanism = ContextMixing(2 * groups, (small, side), axes=2, scale=scale)
        self.mixed, self.gate = ConvNorm(width, width), ConvNorm(width, width)
        self.large, self.after = LargeKernels(width, side), nn.BatchNorm2d(width)
        self.squeeze, self.last = Squeeze(width), nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, both, 1))
        self.again, self.second_norm = Residual(both), ChannelNorm(both, 1e-6)
        self.perceptron = Perceptron(both, int(width * ratio))
        self.outer = nn.ModuleList(Scale(both) for _ in range(2))

    def kernels(self, x: Tensor, z: Tensor) -> Tensor:
        """What the dynamic kernels make of x ``(b, c, y, x)``, z the normed map with its context."""
        size, grid = (x.shape[2], x.shape[3]), enlarged((x.shape[2], x.shape[3]), self.side)
        if grid != size:
            x, z = (F.interpolate(each, grid, mode="bilinear", align_corners=False) for each in (x, z))
        own, context = z.split(self.split, 1)
        q, k = (
            part.unflatten(1, (self.groups, -1)).repeat(1, 2, 1, 1, 1) for part in (self.query(own), self.key(context))
        )
        v = x.unflatten(1, (2 * self.groups, -1))
        out = self.mechanism(*(part.flatten(3).mT for part in (q, k, v)), Layout(grid=grid))
        out = image(out.transpose(1, 2).flatten(2), grid)
        return out if grid == size else F.adaptive_avg_pool2d(out, size)

    def forward(self, x: Tensor, h: Tensor, begun: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.scales):
            h = self.scales[0](h) + self.scales[1](begun)
        z = self.near(torch.cat([x, h], 1))
        normed = self.norm(z)
        x = self.fusion(normed)
        gate, near = F.silu(self.gate(x)), self.after(self.large(x))
        x = gate * self.squeeze(self.mixed(self.kernels(x, normed)) + near)
        z = self.again(self.outer[0](z) + self.last(x))
        z = self.outer[1](z) + self.perceptron(self.second_norm(z))
        own, context = z.split(self.split, 1)
        return own, context


def enlarged(size: tuple[int, int], least: int) -> tuple[int, int]:
    """The size of a map whose shorter side is made ``least`` if it is shorter."""
    y, x = size
    if min(size) >= least:
        return size
    return (least, int(least / y * x)) if y < x else (int(least / x * y), least)


def folded(module: nn.Module) -> nn.Module:
    """A copy for evaluation whose kernels beside each other, and norms behind convolutions, are one convolution."""
    made = copy.deepcopy(module).eval()
    for each in list(made.modules()):
        for name, child in each.named_children():
            if isinstance(child, LargeKernels | ConvNorm):
                setattr(each, name, child.folded())
    return made
