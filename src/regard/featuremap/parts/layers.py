"""Layers that necks are built of: convolutions with a norm, and blocks whose branches fold into one convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


class Convolved(nn.Module):
    """A convolution, padded to keep its map's size, a batch norm and an activation.

    Args:
        inside, out: channels. kernel: odd. stride, groups, rate: of the convolution. activation: what makes it, None
            for none. start: of the norm's weight. bias: whether the convolution has one, which the norm takes away.
    """

    def __init__(
        self,
        inside: int,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        rate: int = 1,
        activation: Activation | None = nn.ReLU,
        start: float = 1.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        pad = kernel // 2 * rate
        self.convolution = nn.Conv2d(inside, out, kernel, stride, pad, rate, groups, bias)
        self.norm = nn.BatchNorm2d(out)
        nn.init.constant_(self.norm.weight, start)
        self.activation = nn.Identity() if activation is None else activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.convolution(x)))

    @property
    def active(self) -> bool:
        """Whether there is an activation."""
        return not isinstance(self.activation, nn.Identity)

    @torch.no_grad()
    def folded(self) -> nn.Sequential:
        """The convolution with the norm within, as in evaluation, and the activation."""
        own = self.convolution
        kernel, bias = in_evaluation(own.weight, self.norm)
        if own.bias is not None:
            bias = bias + own.bias * self.norm.weight * torch.rsqrt(cast(Tensor, self.norm.running_var) + self.norm.eps)
        return nn.Sequential(with_kernel(own, kernel, bias), self.activation)


class RepVGG(nn.Module):
    """``relu(norm(W_3 x) + norm(W_1 x) + norm(x))``: kernels 3 × 3 and 1 × 1 and, where it fits, the map itself.

    Parameters: 10 c d + 4 d, and 2 d where the map itself is added; folded 9 c d + d.

    Args:
        inside, out: channels. stride: of the convolutions. activation: in place of the relu. whole: False for the
            kernels alone.

    Paper: Ding et al., arXiv 2101.03697.
    """

    def __init__(
        self, inside: int, out: int, stride: int = 1, activation: Activation = nn.ReLU, whole: bool = True
    ) -> None:
        super().__init__()
        self.activation = activation()
        self.square = Convolved(inside, out, 3, stride, activation=None)
        self.point = Convolved(inside, out, 1, stride, activation=None)
        self.same = nn.BatchNorm2d(inside) if whole and inside == out and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        own = 0 if self.same is None else self.same(x)
        return self.activation(self.square(x) + self.point(x) + own)

    @torch.no_grad()
    def folded(self) -> nn.Sequential:
        """One convolution with a bias and the activation that are the block as it is in evaluation."""
        own = self.square.convolution
        kernel, bias = in_evaluation(own.weight, self.square.norm)
        point, more = in_evaluation(self.point.convolution.weight, self.point.norm)
        kernel[:, :, 1:2, 1:2] += point
        bias = bias + more
        if self.same is not None:
            unit = torch.eye(own.out_channels).to(kernel)[:, :, None, None]
            point, more = in_evaluation(unit, self.same)
            kernel[:, :, 1:2, 1:2] += point
            bias = bias + more
        return nn.Sequential(with_kernel(own, kernel, bias), self.activation)


def in_evaluation(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution with the norm behind it: ``w γ / √(σ² + ε)``, ``β − μ γ / √(σ² + ε)``."""
    scale = norm.weight * torch.rsqrt(cast(Tensor, norm.running_var) + norm.eps)
    return weight * scale[:, None, None, None], norm.bias - cast(Tensor, norm.running_mean) * scale


def with_kernel(like: Any, kernel: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution of the same stride, padding and groups with this kernel and bias."""
    more = {"padding": like.padding, "dilation": like.dilation, "groups": like.groups}
    made = nn.Conv2d(like.in_channels, like.out_channels, like.kernel_size, like.stride, **more).to(kernel)
    made.weight.copy_(kernel)
    cast(Tensor, made.bias).copy_(bias)
    return made


class Bottle(nn.Module):
    """``f(g(x)) + α x``, two blocks with the map itself by a learned share, which begins as one.

    Args:
        width: channels in and out. block: what makes f and g of channels in and out.
    """

    def __init__(self, width: int, block: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = block(width, width), block(width, width)
        self.share = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + self.share * x


class CrossStage(nn.Module):
    """``W_3 [blocks(W_1 x), W_2 x]``: part of the channels go through the blocks, the others around them.

    Parameters: of the convolutions 2 (c e + 2 e) + 2 e d + 2 d, with e channels inside.

    Args:
        inside, inner, out: channels. blocks: of ``inner`` channels. activation: of the convolutions.
    """

    def __init__(
        self, inside: int, inner: int, out: int, blocks: Iterable[nn.Module], activation: Activation = nn.ReLU
    ) -> None:
        super().__init__()
        self.through = Convolved(inside, inner, activation=activation)
        self.around = Convolved(inside, inner, activation=activation)
        self.blocks = nn.Sequential(*blocks)
        self.join = Convolved(2 * inner, out, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat((self.blocks(self.through(x)), self.around(x)), 1))


def normed_as(module: nn.Module, eps: float, momentum: float) -> None:
    """Gives every batch norm in a module this ε and this momentum."""
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.eps, each.momentum = eps, momentum


def per_cell(module: nn.Module) -> int:
    """Multiply-adds of the module's convolutions for each cell that they give: the numbers in their kernels."""
    return sum(cast(Any, each).weight.numel() for each in module.modules() if isinstance(each, nn.Conv2d))
