"""Norms of feature maps ``(b, c, y, x)``, by name, and convolutions with one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.build import build_part


class ChannelNorm(nn.LayerNorm):
    """The layer norm of each cell over its channels, ``(b, c, y, x)`` -> the same."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__(width, eps)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class GroupNorm(nn.GroupNorm):
    """The norm of the channels of each of ``groups`` over the whole map."""

    def __init__(self, width: int, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__(groups, width, eps)


class BatchNorm(nn.BatchNorm2d):
    """The norm of each channel over maps and cells."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__(width, eps)


class NoNorm(nn.Identity):
    """None."""

    def __init__(self, width: int) -> None:
        super().__init__()


NORMS: dict[str, type[nn.Module]] = {"layer": ChannelNorm, "batch": BatchNorm, "group": GroupNorm, "none": NoNorm}


def norm_of(text: str, width: int) -> nn.Module:
    """The norm that a text such as ``"layer(eps=1e-6)"`` names.

    Raises:
        ValueError: no such norm. TypeError: an argument that it does not take.
    """
    return build_part({"width": width}, "norm", text, NORMS)


class ConvNorm(nn.Module):
    """A convolution without a bias, padded by half of its kernel, and a batch norm.

    Args:
        inside, out: channels. side: of the kernel, odd. stride, groups: of the convolution. start: of the norm's
            weight.
    """

    def __init__(
        self, inside: int, out: int, side: int = 1, stride: int = 1, groups: int = 1, start: float = 1.0
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inside, out, side, stride, side // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out)
        nn.init.constant_(self.norm.weight, start)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolution(x))

    @torch.no_grad()
    def folded(self) -> nn.Conv2d:
        """One convolution that is both, as in evaluation: ``w γ / √(σ² + ε)``, with a bias."""
        c: Any = self.convolution
        n: Any = self.norm
        scale = n.weight * torch.rsqrt(n.running_var + n.eps)
        made: Any = nn.Conv2d(c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding, groups=c.groups)
        made = made.to(c.weight)
        made.weight.copy_(c.weight * scale[:, None, None, None])
        made.bias.copy_(n.bias - n.running_mean * scale)
        return made.train(self.training)


def whole(x: Tensor, side: int) -> Tensor:
    """``x`` with zeros below and to the right, so that ``side`` divides its rows and columns."""
    more = (-x.shape[3] % side, -x.shape[2] % side)
    return F.pad(x, (0, more[0], 0, more[1])) if any(more) else x
