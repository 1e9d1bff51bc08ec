"""Scores and normalisers of one tile, to be put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.kernels.tiled import Score, Span


@dataclass(frozen=True)
class Biased:
    """``s_ij = c tanh(x_ij / c) + b_ij`` of the scores x and the ``bias`` b, c the ``softcap``; None: without."""

    score: Score
    bias: Score | None = None
    softcap: float | None = None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return self.score.parameters + (() if self.bias is None else self.bias.parameters)

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        scores = self.score(q, k, span)
        scores = scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)
        return scores if self.bias is None else scores + self.bias(q, k, span)


@dataclass(frozen=True)
class Apart:
    """``s_ij = −scale |q_i − k_j|²``."""

    scale: float
    parameters: tuple[Tensor, ...] = ()

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        return -self.scale * squared_distance(q, k)


@dataclass(frozen=True)
class OneHiddenLayer:
    """``s_ij = w_h · σ(x_i + y_j)`` of queries x and keys y; ``out (h, D)`` is w, ``activation`` σ."""

    out: Tensor
    activation: Callable[[Tensor], Tensor] = torch.relu

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return (self.out,)

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        hidden = self.activation(q[..., :, None, :] + k[..., None, :, :])
        return (hidden @ self.out.to(q.dtype)[:, None, :, None])[..., 0]


@dataclass(frozen=True)
class TwoHiddenLayers:
    """``s_ij = w_h · relu(V_h relu(x_i + y_j) + c_h)`` of queries x and keys y.

    Args:
        out: w, ``(h or 1, E)``. middle: V transposed, ``(h or 1, D, E)``. bias: c, ``(h or 1, E)``.
    """

    out: Tensor
    middle: Tensor
    bias: Tensor

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return self.out, self.middle, self.bias

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        out, middle, bias = (x.to(q.dtype) for x in self.parameters)
        first = torch.relu(q[..., :, None, :] + k[..., None, :, :])
        second = torch.relu(first.flatten(2, 3) @ middle + bias[:, None])
        return (second @ out[..., None])[..., 0].unflatten(2, first.shape[2:4])


@dataclass(frozen=True)
class Phase:
    """``s_ij = (q_A·k_A / √D_A) cos(2π |p_i − p_j|^α q_P·k_P / √D_P)``.

    Args:
        split: D_A, the first dimensions, of the amplitude. power: α. queries, keys: positions ``(b or 1, tokens)``.
    """

    split: int
    power: float
    queries: Tensor
    keys: Tensor
    parameters: tuple[Tensor, ...] = ()

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        apart = (self.queries[:, span.rows, None] - self.keys[:, None, span.cols]).abs()[:, None].to(q.dtype)
        rest = q.shape[-1] - self.split
        amplitude = q[..., : self.split] @ k[..., : self.split].mT * self.split**-0.5
        phase = q[..., self.split :] @ k[..., self.split :].mT * rest**-0.5
        return amplitude * torch.cos(2 * math.pi * apart**self.power * phase)


@dataclass(frozen=True)
class Slopes:
    """``s_ij = −slope_h |p_i − p_j|``.

    Args:
        slopes: ``(h,)``. queries, keys: positions ``(b or 1, n)`` and ``(b or 1, m)``.
    """

    slopes: Tensor
    queries: Tensor
    keys: Tensor
    parameters: tuple[Tensor, ...] = ()

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        apart = self.queries[:, span.rows, None] - self.keys[:, None, span.cols]
        return self.slopes[:, None, None] * -apart.abs()[:, None].to(q.dtype)


@dataclass(frozen=True)
class Between:
    """``s_ij = c_i − c_j``: the sum of what lies between two tokens.

    Args:
        queries, keys: running sums c in float64, ``(b, h or 1, n)`` and ``(b, h or 1, m)``.
    """

    queries: Tensor
    keys: Tensor

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return self.queries, self.keys

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        return (self.queries[:, :, span.rows, None] - self.keys[:, :, None, span.cols]).to(q.dtype)


@dataclass(frozen=True)
class Offsets:
    """``s_ij = table[h, x_i − x_j]``: one number for each head and offset between two places.

    Args:
        table: ``(h, cells)``, in row-major order of the offsets. sizes: offsets along each axis. queries, keys: the
            coordinates ``(b or 1, n)`` and ``(b or 1, m)`` along each. periodic: offsets count modulo the size; else
            zero is the middle, and those beyond an end are that end's.
    """

    table: Tensor
    sizes: tuple[int, ...]
    queries: Sequence[Tensor]
    keys: Sequence[Tensor]
    periodic: bool = False

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return (self.table,)

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        index = torch.zeros(1, 1, 1, dtype=torch.int64, device=q.device)
        for size, x, y in zip(self.sizes, self.queries, self.keys, strict=True):
            apart, middle = x[:, span.rows, None] - y[:, None, span.cols], size // 2
            index = index * size + (apart % size if self.periodic else apart.clamp(-middle, middle) + middle)
        found = self.table.index_select(1, index.flatten()).unflatten(1, index.shape)
        return found.transpose(0, 1).expand(q.shape[0], -1, -1, -1)


@dataclass(frozen=True)
class Swapped:
    """``s_ji``: the same score with keys in the place of queries and queries in that of keys."""

    score: Score

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return self.score.parameters

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        return self.score(k, q, Span(span.cols, span.rows)).mT.contiguous()


@dataclass(frozen=True)
class Shifted:
    """``s_ij − c_j`` with c the last coordinate of k."""

    score: Score

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return self.score.parameters

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        return self.score(q, k[..., :-1], span) - k[..., None, :, -1]


@dataclass(frozen=True)
class Power:
    """``p_ij = max(s_ij, 0)^α / c_i`` with ``power`` α and ``counts`` c ``(b or 1, h or 1, n)``."""

    power: float
    counts: Tensor

    def __call__(self, scores: Tensor, span: Span) -> Tensor:
        return torch.relu(scores) ** self.power / self.counts[:, :, span.rows, None].to(scores.dtype)


@dataclass(frozen=True)
class Gaussian:
    """``p_ij = ½ (1 + erf((s_ij − μ) / (σ √2)))``: the share of a normal distribution below the score."""

    mean: float
    deviation: float

    def __call__(self, scores: Tensor, span: Span) -> Tensor:
        return (1 + torch.erf((scores - self.mean) / (self.deviation * math.sqrt(2)))) / 2


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """``|x_i − y_j|²``, ``(…, n, m)``."""
    return x.square().sum(-1)[..., None] - 2 * (x @ y.mT) + y.square().sum(-1)[..., None, :]
