"""The search for the share of channels that a partial convolution reads: one gate for each halving of the channels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.networks.stages.steps.base import Step
from regard.networks.stages.steps.partial import PartialMLP

START = 1e-8


def straight(gates: Tensor) -> Tensor:
    """1 for gates above zero and 0 for others, with the gradient of ``g / 2`` between −1 and 1."""
    line = gates.clamp(-1, 1) / 2
    return line + ((gates.sign() + 1) / 2 - line).detach()


class DynamicPartial(Step):
    """A convolution 3 × 3 whose share of channels is learned, and `PartialMLP` of it.

        s_k = [g_k > 0],   U = ⊗_k (s_k 1 + (1 − s_k) I),   y = mlp((W ⊙ U) * x)   in training
        y = mlp([W_1 * x_1, x_2]),   x_1 the first c / 2^z channels, z the gates that are 0   else

    1 is the 2 × 2 matrix of ones. Where all gates of 0 come before those of 1, W ⊙ U is a convolution of 2^z groups, of
    which the first is kept. A step with its gates known is `partial_channels(divisor=2^z)` without attention.

    Args:
        width: c, a power of two. ratio, activation: see `PartialMLP`.

    Raises:
        ValueError: a width that is no power of two.

    Paper: Huang et al. (DPConv), arXiv 2502.01303; Zhang et al. (dynamic grouping), 1908.05867.
    """

    normed = False

    def __init__(self, width: int, ratio: float = 2, activation: str = "gelu") -> None:
        super().__init__()
        if width < 2 or width & (width - 1):
            raise wrong("width", str(width), "a power of two")
        self.gates = nn.Parameter(START * (2 * torch.randint(2, (int(math.log2(width)),)) - 1).float())
        self.convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.mlp = PartialMLP(width, ratio, activation)

    @property
    def divisor(self) -> int:
        """2^z, c over the channels that are convolved."""
        return 2 ** int((self.gates <= 0).sum())

    def connections(self) -> Tensor:
        """How many pairs of channels are connected, 2^(log2 c + Σ s), with a gradient to the gates."""
        return 2 ** (len(self.gates) + straight(self.gates).sum())

    def disorder(self) -> Tensor:
        """``Σ |g_k|`` from the first gate of 0 that comes after one of 1: what keeps W ⊙ U from being groups."""
        on = straight(self.gates).detach() > 0.5
        later = (~on) & (on.long().cumsum(0) > 0)
        return (self.gates.abs() * (later.long().cumsum(0) > 0)).sum()

    def mask(self) -> Tensor:
        """U ``(c, c)``."""
        one, own = self.gates.new_ones(2, 2), torch.eye(2).to(self.gates)
        return reduce(torch.kron, [each * one + (1 - each) * own for each in straight(self.gates)])

    def mixed(self, x: Tensor) -> Tensor:
        """What the perceptron reads."""
        if self.training:
            return F.conv2d(x, self.convolution.weight * self.mask()[:, :, None, None], padding=1)
        own = x.shape[1] // self.divisor
        return torch.cat([F.conv2d(x[:, :own], self.convolution.weight[:own, :own], padding=1), x[:, own:]], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.mixed(x))


def searched(network: nn.Module) -> Iterator[DynamicPartial]:
    """The steps of a network whose shares are searched for."""
    return (each for each in network.modules() if isinstance(each, DynamicPartial))


def search_loss(
    network: nn.Module, loss: Tensor, share: float = 0.25, alpha: float = 0.01, order: float = 1.0
) -> Tensor:
    """``loss (Σ connections / (share Σ c²))^α + order Σ disorder`` where there are more connections than the share of
    all allows, and without the power where there are not.

    Args:
        network: with `DynamicPartial` steps. loss: of its task. share: of all pairs of channels. alpha: how much too
            many connections cost. order: of the `DynamicPartial.disorder` of its steps.

    Raises:
        ValueError: a network without such steps, a share that is none.
    """
    steps = list(searched(network))
    if not steps or not 0 < share <= 1:
        raise wrong("network, share", f"{len(steps)} steps, {share}", "with dynamic_partial, above 0 and up to 1")
    used = torch.stack([each.connections() for each in steps]).sum()
    budget = share * sum(4 ** len(each.gates) for each in steps)
    if used > budget:
        loss = loss * (used / budget) ** alpha
    return loss + order * torch.stack([each.disorder() for each in steps]).sum()
