"""Pools: statistics of a feature map over some of its axes, of shape ``(b, s, …)`` with the axes that are left."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.featuremap.gate import AXES, MapShape

RANKED = tuple(
    zip(
        (0, 0, 6, 0, 0, 1, 1, 4, 5, 1, 3, 0, 0, 0, 3, 2, 4, 6, 3, 5, 5, 2, 6, 5, 5, 3, 3, 4, 2, 2, 6, 1),
        (0, 1, 0, 5, 2, 0, 2, 0, 0, 6, 0, 4, 6, 3, 5, 2, 6, 3, 3, 3, 5, 1, 1, 2, 4, 2, 1, 1, 3, 0, 5, 3),
        strict=True,
    )
)
"""Frequencies (u, v) of a 7 × 7 map in the order of the accuracy that each gives alone (Qin et al.)."""


def dims(over: str) -> tuple[int, ...]:
    """The dimensions of ``(b, c, y, x)`` that the letters of ``over`` name."""
    return tuple(1 + AXES.index(axis) for axis in over)


def mean(x: Tensor, over: tuple[int, ...]) -> Tensor:
    """The mean over some dimensions, in single and double precision as a sum that is divided: its gradient is then
    spread without a pass over the map. Half precision, whose sums could overflow, is left to PyTorch's mean."""
    if x.dtype not in (torch.float32, torch.float64):
        return x.mean(over)
    return x.sum(over) / math.prod(x.shape[dim] for dim in over)


class Pool(nn.Module):
    """The base of every pool: ``x (b, c, y, x)`` -> ``(b, statistics, …)`` without the axes of ``over``.

    Args:
        channels: c. over: letters of the axes that are pooled; none leaves the map as it is, one statistic.
    """

    statistics: int = 1
    everywhere: bool = True
    """Whether what the map shows may be moved: the pool does not know positions."""
    permutes: bool = True
    """Whether permuted channels give permuted statistics, or the same ones."""
    needs: str | None = None
    """The axes that it must be over, None for any."""

    def __init__(self, channels: int, over: str) -> None:
        super().__init__()
        if self.needs is not None and over != self.needs:
            raise wrong("over", repr(over), f"{self.needs!r} for this pool")
        self.channels, self.over, self.dims = channels, over, dims(over)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def parameter_count(self) -> int:
        """By formula."""
        return 0

    def flops(self, shape: MapShape) -> int:
        """Two for each multiply-add of a product."""
        return 0


class NoPool(Pool):
    """The map itself, one statistic of every cell."""

    needs = ""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, None]


class Mean(Pool):
    """The mean."""

    def forward(self, x: Tensor) -> Tensor:
        return mean(x, self.dims).unsqueeze(1)


class Max(Pool):
    """The maximum; several equal ones share its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(self.dims).unsqueeze(1)


class MaxMean(Pool):
    """Maximum and mean, in this order: the Z-pool of triplet attention."""

    statistics = 2

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack((x.amax(self.dims), mean(x, self.dims)), 1)


class MeanDeviation(Pool):
    """Mean and standard deviation over the population, which one cell has too: zero, with a gradient of zero."""

    statistics = 2

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, self.dims, correction=0)
        some = variance > 0
        deviation = torch.where(some, torch.where(some, variance, 1).sqrt(), 0)
        return torch.stack((mean, deviation), 1)


class Query(Pool):
    """A mean of all cells under a learned attention: ``Σ_p softmax_p(w · x_p + b) x_p``."""

    needs, permutes = "yx", False

    def __init__(self, channels: int, over: str, bias: bool = True) -> None:
        super().__init__(channels, over)
        self.score = nn.Conv2d(channels, 1, 1, bias=bias)

    def attention(self, x: Tensor) -> Tensor:
        """The weight of each cell ``(b, y · x)``; they sum to one."""
        return torch.softmax(self.score(x).flatten(1), 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(2) @ self.attention(x)[..., None]).mT

    @property
    def parameter_count(self) -> int:
        return self.channels + (self.score.bias is not None)

    def flops(self, shape: MapShape) -> int:
        return 4 * math.prod(shape)


class Cosines(Pool):
    """Another coefficient of the discrete cosine transform for each group of channels.

        Σ_yx x_yx cos(π u (y + ½) / S) cos(π v (x + ½) / S) / S, √2 larger for each of u, v above zero

    Maps of other sizes than S × S are pooled to S × S first. S = ``size``; (u, v) are the ``frequencies`` best ones of
    `RANKED`, times S // 7; one of them gives S times the mean.
    """

    needs = "yx"
    everywhere = permutes = False

    def __init__(self, channels: int, over: str, frequencies: int = 16, size: int = 7) -> None:
        super().__init__(channels, over)
        if not 1 <= frequencies <= len(RANKED) or channels % frequencies:
            wanted = f"at most {len(RANKED)}, a divisor of the {channels} channels"
            raise wrong("frequencies", str(frequencies), wanted)
        if size < 7:
            raise wrong("size", str(size), "at least 7, whose frequencies are ranked")
        self.frequencies, self.size = frequencies, size
        self.register_buffer("basis", self.waves(), persistent=False)

    basis: Tensor

    def waves(self) -> Tensor:
        """The basis ``(frequencies, S · S)``."""
        place = (torch.arange(self.size, dtype=torch.float64) + 0.5) * math.pi / self.size
        waves = torch.stack([torch.cos(f * place) * (2 if f else 1) ** 0.5 for f in range(self.size)])
        best, step = RANKED[: self.frequencies], self.size // 7
        planes = [torch.outer(waves[u * step], waves[v * step]).flatten() / self.size for u, v in best]
        return torch.stack(planes).to(torch.get_default_dtype())

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (self.size, self.size):
            x = F.adaptive_avg_pool2d(x, self.size)
        grouped = x.flatten(2).unflatten(1, (self.frequencies, -1))
        return (grouped @ self.basis.to(x.dtype)[:, :, None]).flatten(1)[:, None]

    def flops(self, shape: MapShape) -> int:
        return 2 * shape[0] * self.channels * self.size**2


POOLS: dict[str, type[Pool]] = {
    "none": NoPool,
    "mean": Mean,
    "max": Max,
    "z": MaxMean,
    "deviation": MeanDeviation,
    "query": Query,
    "dct": Cosines,
}
