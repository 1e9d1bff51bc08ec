"""Pyramid vector quantisation: directions as points of whole numbers whose absolute values have one sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from regard.codecs.half import HALF, from_half, to_half
from regard.core.atlas import Claim, published
from regard.core.codec import Codec
from regard.core.errors import wrong
from regard.core.kinds import Sample


@published(
    "pvq",
    family="cache",
    kind="codec",
    row=196,
    title="Pyramid Vector Quantization for LLMs",
    arxiv="2410.16926",
    year=2024,
    fidelity="abstract only",
    aliases=("pyramid_vector",),
    claim=(
        Claim(
            "normal vectors are coded with less error than by rounding to nearest with as many bits",
            cells="codes.normal_error",
            holds="codes.below_rounding",
        ),
        Claim(
            "SmolLM2 with weights of about three bits reads text better than with weights rounded to nearest",
            cells="codes.perplexity",
            holds="codes.reads_better",
        ),
        Claim(
            "SmolLM2 reads unseen text better with errors weighed by what its layers are given",
            cells="codes.weighing",
            holds="codes.weighed_reads_better",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class PyramidVector(Codec):
    """Groups of numbers as a point of the pyramid, an amplitude among its quantiles, and one scale for the vector.

        x = s · H c,   group j of c:  r_j y_j / ‖y_j‖₂,   y_j ∈ P(g, K) = {y ∈ ℤ^g : Σ |y_i| = K}
        index of y among N(g, K) = N(g−1, K) + N(g, K−1) + N(g−1, K−1);   r_j² ~ Beta(g/2, (d−g)/2)

    y is the direction of the group: rounded down onto the pyramid, then each missing unit where it helps most. Cells
    of r have the same probability under the Beta law, which holds for vectors with no preferred direction: for that H,
    a Hadamard matrix with fixed signs, mixes the vector's numbers. s is ‖x‖₂ in half precision.

    Shapes: as `core.codec.Codec`. Cost: K steps of a group's numbers; g · K comparisons to decode.

    Args:
        group: g. pulses: K. levels: of the amplitude. mix: whether H is used, where
            2, 4, 8 … divide d as far as they do.

    Raises:
        ValueError: sizes below one, N(g, K) beyond 2⁶², or a group that does not divide a vector.

    Errors weighed by the Hessian of a layer's inputs: `codecs.weighed`, and ``texts`` of `regard.quantise`.
    Products are computed with what was decoded: kernels for coded ones are no part of the method.

    Paper: van der Ouderaa et al., arXiv 2410.16926. Cells of equal probability and the search for y are ours.
    """

    group: int = 16
    pulses: int = 24
    levels: int = 16
    mix: bool = True

    def __post_init__(self) -> None:
        if min(self.group, self.pulses, self.levels) < 1:
            what = f"{self.group}, {self.pulses}, {self.levels}"
            raise wrong("group, pulses, levels", what, "at least 1 each")
        if points(self.group, self.pulses) >= 1 << 62:
            what = f"{self.group}, {self.pulses}, of 2^{math.log2(points(self.group, self.pulses)):.0f} points"
            raise wrong("group, pulses", what, "fewer than 2^62 points")

    def groups(self, d: int) -> int:
        """How many groups a vector has."""
        if d % self.group:
            raise wrong("group", f"{self.group}, for vectors of {d}", f"a divisor of {d}")
        return d // self.group

    def sizes(self, d: int) -> Mapping[str, tuple[int, int]]:
        count = self.groups(d)
        found = {"points": (count, points(self.group, self.pulses)), "scales": (1, HALF)}
        return found | ({"amplitudes": (count, self.levels)} if count > 1 else {})

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        x = x.float()
        norm = x.norm(dim=-1, keepdim=True)
        parts = self.mixed(x).unflatten(-1, (self.groups(x.shape[-1]), self.group))
        codes = {"points": index_of(nearest(parts, self.pulses)), "scales": to_half(norm)}
        if parts.shape[-2] > 1:
            share = parts.norm(dim=-1) / norm.clamp(min=torch.finfo(norm.dtype).tiny)
            codes["amplitudes"] = torch.bucketize(share, self.quantiles(x.shape[-1])[1].to(share)).clamp(
                max=self.levels - 1
            )
        return codes

    def decode(self, codes: Mapping[str, Tensor], d: int) -> Tensor:
        y = point_of(codes["points"], self.group, self.pulses).float()
        y = y / y.norm(dim=-1, keepdim=True)
        if self.groups(d) > 1:
            y = y * self.quantiles(d)[0].to(y)[codes["amplitudes"]][..., None]
        return self.mixed((y.flatten(-2) * from_half(codes["scales"])), back=True)

    def quantiles(self, d: int) -> tuple[Tensor, Tensor]:
        """``(the middles of the amplitude's cells (levels,), the borders between them (levels − 1,))``."""
        at = torch.arange(2 * self.levels, dtype=torch.float64)[1:] / (2 * self.levels)
        found = beta_quantiles(at, self.group / 2, (d - self.group) / 2).sqrt()
        return found[::2], found[1::2]

    def mixed(self, x: Tensor, back: bool = False) -> Tensor:
        """H x, or Hᵀ x: signs, then sums and differences of pairs, pairs of pairs …, each over √2."""
        if not self.mix:
            return x
        d = x.shape[-1]
        signs = torch.randint(0, 2, (d,), generator=torch.Generator().manual_seed(d)).to(x) * 2 - 1
        x = x if back else x * signs
        step = 1
        while d % (2 * step) == 0:
            a, b = x.unflatten(-1, (-1, 2, step)).unbind(-2)
            x = torch.stack([a + b, a - b], -2).flatten(-3) * 0.5**0.5
            step *= 2
        return x * signs if back else x

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [
            Sample("groups of 8", cls(group=8, pulses=12, levels=8), {"d": 24, "coarser": cls(group=8, pulses=4)}),
            Sample("one group", cls(group=7, pulses=9, mix=False), {"d": 7, "coarser": cls(group=7, pulses=3)}),
        ]


@cache
def points(n: int, k: int) -> int:
    """N(n, k): how many points of n whole numbers have absolute values that add up to k."""
    row = [1] + [0] * k  # of no numbers
    for _ in range(n):
        new = [1]
        for j in range(1, k + 1):
            new.append(row[j] + new[j - 1] + row[j - 1])
        row = new
    return row[k]


@cache
def starts(n: int, k: int) -> Tensor:
    """``(n, k + 1, k + 2)``: with m numbers after this one and j left, how many points have a smaller one, in size."""
    table = torch.zeros(n, k + 1, k + 2, dtype=torch.int64)
    for m in range(n):
        for j in range(k + 1):
            total = 0
            for size in range(j + 1):
                table[m, j, size] = total
                total += points(m, j - size) * (2 if size else 1)
            table[m, j, j + 1 :] = total
    return table


def nearest(x: Tensor, k: int) -> Tensor:
    """Points ``(…, n)`` of the pyramid in the directions of ``x (…, n)``; of zeros the first axis."""
    size = x.abs()
    size = torch.where(size.sum(-1, keepdim=True) > 0, size, torch.eye(x.shape[-1], device=x.device)[0])
    y = (size * (k / size.sum(-1, keepdim=True))).floor()
    y = torch.where(y.sum(-1, keepdim=True) > k, 0, y)
    dot, square = (size * y).sum(-1, keepdim=True), y.square().sum(-1, keepdim=True)
    for _ in range(int((k - y.sum(-1)).max())):
        gain = (dot + size).square() / (square + 2 * y + 1)
        at = gain.argmax(-1, keepdim=True)
        short = (y.sum(-1, keepdim=True) < k).to(y)
        dot = dot + short * size.gather(-1, at)
        square = square + short * (2 * y.gather(-1, at) + 1)
        y = y.scatter_add(-1, at, short)
    return torch.where(x < 0, -y, y).long()


def index_of(y: Tensor) -> Tensor:
    """The numbers ``(…,)`` of points ``(…, n)`` in the order of their first whole numbers: 0, 1, −1, 2, −2 …"""
    n, k = y.shape[-1], int(y.abs().sum(-1).flatten()[0]) if y.numel() else 0
    table, left = starts(n, k).to(y.device), y.new_full(y.shape[:-1], k)
    total = torch.zeros_like(left)
    for place in range(n):
        m, value = n - 1 - place, y[..., place]
        size = value.abs()
        total = total + table[m, left, size]
        left = left - size
        total = total + (value < 0) * counts(m, k).to(y.device)[left]
    return total


def point_of(index: Tensor, n: int, k: int) -> Tensor:
    """The points ``(…, n)`` of numbers ``(…,)``."""
    table, left, found = starts(n, k).to(index.device), torch.full_like(index, k), []
    for place in range(n):
        m = n - 1 - place
        row = table[m, left]
        size = (row <= index[..., None]).sum(-1) - 1
        size = torch.minimum(size, left)
        rest = index - row.gather(-1, size[..., None])[..., 0]
        left = left - size
        many = counts(m, k).to(index.device)[left]
        below = (size > 0) & (rest >= many)
        index = rest - below * many
        found.append(torch.where(below, -size, size))
    return torch.stack(found, -1)


@cache
def counts(m: int, k: int) -> Tensor:
    """N(m, 0 … k)."""
    return torch.tensor([points(m, j) for j in range(k + 1)])


GRID = 1 << 14


def beta_quantiles(at: Tensor, a: float, b: float) -> Tensor:
    """Where the distribution function of Beta(a, b) reaches ``at``, by sums over a fine grid in the angle."""
    angle = (torch.arange(GRID, dtype=torch.float64) + 0.5) * (math.pi / 2 / GRID)
    logs = (2 * a - 1) * angle.sin().log() + (2 * b - 1) * angle.cos().log()  # x = sin²: no pole at either end
    mass = (logs - logs.max()).exp().cumsum(0)
    place = torch.searchsorted(mass / mass[-1], at).clamp(max=GRID - 1)
    return angle[place].sin().square()
