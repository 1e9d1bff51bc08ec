"""Mixes: what is learned between the statistics of a pool and the numbers that are squashed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.featuremap.gate import AXES, MapShape


class Mix(nn.Module):
    """The base of every mix: statistics ``(b, s, …)`` of each branch -> ``(b, n, …)``, of which n are averaged.

    Args:
        channels: c of the map. over: of each branch, the axes that it has pooled. statistics: s.
    """

    batch_norm: bool = False
    permutes: bool = False
    """Whether permuted channels give permuted factors."""

    def __init__(self, channels: int, over: Sequence[str], statistics: int) -> None:
        super().__init__()
        self.channels, self.over, self.statistics = channels, tuple(over), statistics

    def need(self, *allowed: str) -> None:
        """Raises unless every branch has pooled one of these axes."""
        for over in self.over:
            if over not in allowed:
                raise wrong("over", repr(over), f"{' or '.join(map(repr, allowed))} for this mix")

    def forward(self, pooled: list[Tensor]) -> list[Tensor]:
        raise NotImplementedError

    @property
    def parameter_count(self) -> int:
        """By formula."""
        raise NotImplementedError

    def flops(self, shape: MapShape) -> int:
        """Two for each multiply-add of a product or convolution."""
        raise NotImplementedError


class Mlp(Mix):
    """Two layers over the channels with a bottleneck, for each statistic the same, whose outputs are summed.

        Σ_s W_2 relu(norm(W_1 p_s + b_1)) + b_2

    Args:
        ratio, divisor: the bottleneck has channels / ratio units, rounded to a multiple of the divisor, at least one
            multiple. bias: b_1 and b_2. norm: layer for a layer norm. eps: of the norm. activation: relu, or silu in
            its place.
    """

    def __init__(
        self,
        channels: int,
        over: Sequence[str],
        statistics: int,
        ratio: float = 16,
        divisor: int = 1,
        bias: bool = True,
        norm: Literal["layer"] | None = None,
        eps: float = 1e-5,
        activation: Literal["relu", "silu"] = "relu",
    ) -> None:
        super().__init__(channels, over, statistics)
        self.need("yx")
        if norm not in ("layer", None):
            raise wrong("norm", repr(norm), "'layer' or None")
        if activation not in ("relu", "silu"):
            raise wrong("activation", repr(activation), "'relu' or 'silu'")
        self.activation = torch.relu if activation == "relu" else nn.functional.silu
        self.hidden, self.bias = bottleneck(channels, ratio, divisor), bias
        self.first = nn.Linear(channels, self.hidden, bias)
        self.norm = nn.LayerNorm(self.hidden, eps) if norm else None
        self.second = nn.Linear(self.hidden, channels, bias)

    def forward(self, pooled: list[Tensor]) -> list[Tensor]:
        mixed = [self.one(statistics) for statistics in pooled]
        return mixed if self.statistics == 1 else [each.sum(1, keepdim=True) for each in mixed]

    def one(self, statistics: Tensor) -> Tensor:
        """Of each statistic ``(b, s, c)`` alone."""
        hidden = self.first(statistics)
        return self.second(self.activation(hidden if self.norm is None else self.norm(hidden)))

    @property
    def parameter_count(self) -> int:
        extra = (self.hidden + self.channels) * self.bias + (2 * self.hidden if self.norm is not None else 0)
        return 2 * self.channels * self.hidden + extra

    def flops(self, shape: MapShape) -> int:
        return 4 * shape[0] * self.statistics * self.channels * self.hidden * len(self.over)


class Dense(Mix):
    """One matrix from all statistics of all channels to the channels: ``norm(W [p_1 … p_s] + b)``.

    Args:
        bias: b. norm: whether there is a batch norm.
    """

    def __init__(
        self, channels: int, over: Sequence[str], statistics: int, bias: bool = True, norm: bool = False
    ) -> None:
        super().__init__(channels, over, statistics)
        self.need("yx")
        self.linear = nn.Linear(statistics * channels, channels, bias)
        self.norm, self.batch_norm = (nn.BatchNorm1d(channels) if norm else None), norm

    def forward(self, pooled: list[Tensor]) -> list[Tensor]:
        mixed = [self.linear(statistics.flatten(1)) for statistics in pooled]
        return [(each if self.norm is None else self.norm(each)).unsqueeze(1) for each in mixed]

    @property
    def parameter_count(self) -> int:
        extra = (self.linear.bias is not None) + 2 * (self.norm is not None)
        return self.channels * (self.statistics * self.channels + extra)

    def flops(self, shape: MapShape) -> int:
        return 2 * shape[0] * self.statistics * self.channels**2 * len(self.over)


class ChannelConvolution(Mix):
    """A convolution along the channels, without a bias: k weights for each statistic.

    Args:
        kernel: k, odd; None for the one that the number of channels calls for, `adaptive`.
    """

    def __init__(self, channels: int, over: Sequence[str], statistics: int, kernel: int | None = None) -> None:
        super().__init__(channels, over, statistics)
        self.need("yx")
        self.kernel = odd(adaptive(channels) if kernel is None else kernel)
        self.convolution = nn.Conv1d(statistics, 1, self.kernel, padding=self.kernel // 2, bias=False)

    def forward(self, pooled: list[Tensor]) -> list[Tensor]:
        return [self.convolution(statistics) for statistics in pooled]

    @property
    def parameter_count(self) -> int:
        return self.kernel * self.statistics

    def flops(self, shape: MapShape) -> int:
        return 2 * shape[0] * self.channels * self.kernel * self.statistics * len(self.over)


class PlaneConvolution(Mix):
    """A k × k convolution over the two axes that a branch has left, to one plane, and a batch norm of that plane.

    Args:
        kernel: k, odd. momentum: of the norm.
    """

    batch_norm = True

    def __init__(
        self, channels: int, over: Sequence[str], statistics: int, kernel: int = 7, momentum: float = 0.01
    ) -> None:
        super().__init__(channels, over, statistics)
        self.need("c", "y", "x")
        self.kernel, pad = odd(kernel), kernel // 2
        self.convolutions = nn.ModuleList(nn.Conv2d(statistics, 1, kernel, padding=pad, bias=False) for _ in over)
        self.norms = nn.ModuleList(nn.BatchNorm2d(1, momentum=momentum) for _ in over)

    @property
    def permutes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return set(self.over) == {"c"}

    def forward(self, pooled: list[Tensor]) -> list[Tensor]:
        steps = zip(self.convolutions, self.norms, pooled, strict=True)
        return [norm(convolution(statistics)) for convolution, norm, statistics in steps]

    @property
    def parameter_count(self) -> int:
        return len(self.over) * (self.kernel**2 * self.statistics + 2)

    def flops(self, shape: MapShape) -> int:
        return sum(2 * cells(shape, over) * self.kernel**2 * self.statistics for over in self.over)


class Strips(Mix):
    """One convolution along each strip, rows and columns alike, and a group norm: no channel is reduced.

    Args:
        kernel: odd. groups: of the convolution, the number of channels for a depthwise one. norm_groups: of the norm.
    """

    def __init__(
        self,
        channels: int,
        over: Sequence[str],
        statistics: int,
        kernel: int = 7,
        groups: int | None = None,
        norm_groups: int = 16,
    ) -> None:
        super().__init__(channels, over, statistics)
        self.need("y", "x")
        groups = channels if groups is None else groups
        for name, number in (("groups", groups), ("norm_groups", norm_groups)):
            if number < 1 or channels % number:
                raise wrong(name, str(number), f"a divisor of the {channels} channels")
        self.kernel, self.groups = odd(kernel), groups
        self.convolution = nn.Conv1d(
            statistics * channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False
        )
        self.norm = nn.GroupNorm(norm_groups, channels)

    def forward(self, pooled: list[Tensor]) -> list[Tensor]:
        return [self.norm(self.convolution(statistics.flatten(1, 2)))[:, None] for statistics in pooled]

    @property
    def parameter_count(self) -> int:
        return self.channels * (self.statistics * self.channels // self.groups * self.kernel + 2)

    def flops(self, shape: MapShape) -> int:
        taps = self.statistics * self.channels // self.groups * self.kernel
        return sum(2 * cells(shape, over) * taps for over in self.over)


class Joint(Mix):
    """A bottleneck that rows and columns share, then a matrix for each.

        W_branch hardswish(norm(W [rows; columns]))

    Args:
        ratio, divisor: of the bottleneck, as in `Mlp`.
    """

    batch_norm = True

    def __init__(
        self, channels: int, over: Sequence[str], statistics: int, ratio: float = 32, divisor: int = 8
    ) -> None:
        super().__init__(channels, over, statistics)
        self.need("y", "x")
        self.hidden = bottleneck(channels, ratio, divisor)
        self.first = nn.Conv1d(statistics * channels, self.hidden, 1, bias=False)
        self.norm = nn.BatchNorm1d(self.hidden)
        self.second = nn.ModuleList(nn.Conv1d(self.hidden, channels, 1, bias=False) for _ in over)

    def forward(self, pooled: list[Tensor]) -> list[Tensor]:
        strips = [statistics.flatten(1, 2) for statistics in pooled]
        hidden = nn.functional.hardswish(self.norm(self.first(torch.cat(strips, 2))))
        parts = hidden.split([strip.shape[2] for strip in strips], 2)
        return [layer(part)[:, None] for layer, part in zip(self.second, parts, strict=True)]

    @property
    def parameter_count(self) -> int:
        return self.channels * self.hidden * (self.statistics + len(self.over)) + 2 * self.hidden

    def flops(self, shape: MapShape) -> int:
        strips = sum(cells(shape, over) for over in self.over)
        return 2 * strips * self.hidden * (self.statistics + 1)


class Power(Mix):
    """Polynomials of each cell up to an order R, each squashed by itself and averaged.

        term r:  W_r relu(Π_{i ≤ r} V_{r,i} x_p),   r = 1 … R

    All V and W are matrices between the channels and their quarter, without biases.

    Args:
        order: R.
    """

    def __init__(self, channels: int, over: Sequence[str], statistics: int, order: int = 3) -> None:
        super().__init__(channels, over, statistics)
        self.need("")
        if order < 1:
            raise wrong("order", str(order), "at least 1")
        self.order, self.hidden = order, max(channels // 8 * 2, 1)
        self.inner = nn.ModuleList(
            nn.Conv2d(channels, (r + 1) * self.hidden, 1, bias=False) for r in range(order)
        )  # all V of a term, one after the other
        self.outer = nn.ModuleList(nn.Conv2d(self.hidden, channels, 1, bias=False) for _ in range(order))

    def products(self, x: Tensor) -> list[Tensor]:
        """Π_i V_{r,i} x of each order r ``(b, hidden, y, x)``: homogeneous, c x gives c^r times as much."""
        return [inner(x).unflatten(1, (r + 1, self.hidden)).prod(1) for r, inner in enumerate(self.inner)]

    def forward(self, pooled: list[Tensor]) -> list[Tensor]:
        return [torch.stack([f(torch.relu(t)) for f, t in zip(self.outer, self.products(p[:, 0]), strict=True)], 1)
                for p in pooled]  # fmt: skip

    @property
    def parameter_count(self) -> int:
        return self.channels * self.hidden * (self.order * (self.order + 1) // 2 + self.order)

    def flops(self, shape: MapShape) -> int:
        return 2 * shape[0] * shape[2] * shape[3] * self.parameter_count


class NoMix(Mix):
    """The statistics as they are: nothing is learned."""

    permutes = True

    def forward(self, pooled: list[Tensor]) -> list[Tensor]:
        return pooled

    @property
    def parameter_count(self) -> int:
        return 0

    def flops(self, shape: MapShape) -> int:
        return 0


MIXES: dict[str, type[Mix]] = {
    "none": NoMix,
    "mlp": Mlp,
    "dense": Dense,
    "conv1d": ChannelConvolution,
    "conv2d": PlaneConvolution,
    "strips": Strips,
    "joint": Joint,
    "power": Power,
}


def cells(shape: MapShape, over: str) -> int:
    """How many numbers are left of a map when the axes ``over`` are pooled."""
    return shape[0] * math.prod(size for axis, size in zip(AXES, shape[1:], strict=True) if axis not in over)


def adaptive(channels: int) -> int:
    """ECA's kernel for so many channels: the odd number at or above ⌊(log2 c + 1) / 2⌋, at least 3."""
    size = int(abs((math.log2(channels) + 1) / 2))
    return max(size if size % 2 else size + 1, 3)


def odd(kernel: int) -> int:
    """The kernel, if it is odd."""
    if kernel < 1 or kernel % 2 == 0:
        raise wrong("kernel", str(kernel), "an odd number")
    return kernel


def bottleneck(channels: int, ratio: float, divisor: int) -> int:
    """``channels / ratio`` rounded to a multiple of the divisor, at least one multiple."""
    if ratio <= 0 or divisor < 1:
        raise wrong("ratio, divisor", f"{ratio}, {divisor}", "above zero")
    return max(divisor, int(channels / ratio + divisor / 2) // divisor * divisor)
