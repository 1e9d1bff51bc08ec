"""Miras' three memories: other losses than the squared error, other ways to retain than decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.mechanism import Example, LayerSpec, Signal
from regard.kernels.scan.online import Rule
from regard.mechanisms.memory.base import OnlineMemory
from regard.mechanisms.memory.titans import step_of

LONGEST = 40.0
"""Of a chunk's summed log decays by channel, above which their quotients would leave single precision."""


class Residual(Rule):
    """The squared error of ``x + LN(GELU(x W_1) W_2)``."""

    residual = True


class PowerLoss(Residual):
    """``‖e‖_p^p``, and weights that are the sums over a power of their norm.

        W_t = A_t / ‖A_c‖_q^{q−2}

    The norm is that of the sums which the first token of the chunk leaves.
    """

    def __init__(self, p: float, q: float) -> None:
        self.p, self.q = p, q

    def slope(self, error: Tensor, threshold: Tensor | None) -> Tensor:
        return self.p * error.abs() ** (self.p - 1) * error.sign()

    def loss(self, error: Tensor, threshold: Tensor | None) -> Tensor:
        return (error.abs() ** self.p).sum(-1)

    def kept_size(self, sizes: list[tuple[int, int]]) -> int:
        return len(sizes)

    def kept(self, first: Tensor) -> Tensor:
        return (first.abs() ** self.q).sum((-1, -2), keepdim=True) ** ((self.q - 2) / self.q)

    def weights(self, sums: Tensor, kept: Tensor) -> Tensor:
        return sums / kept

    def product(self, read: Callable[[], Tensor], x: Tensor, kept: Tensor) -> Tensor:
        return read() / kept


class HuberLoss(Residual):
    """``‖e‖²`` where the error is at most δ_t long, and ``δ_t ‖e‖_1`` beyond."""

    def slope(self, error: Tensor, threshold: Tensor | None) -> Tensor:
        assert threshold is not None
        return torch.where(near(error, threshold), 2 * error, threshold * error.sign())

    def loss(self, error: Tensor, threshold: Tensor | None) -> Tensor:
        assert threshold is not None
        return torch.where(near(error, threshold), error.square(), threshold * error.abs()).sum(-1)


def near(error: Tensor, threshold: Tensor) -> Tensor:
    """``(…, n, 1)`` bool: whether the error is at most as long as the threshold."""
    return torch.linalg.vector_norm(error.detach(), dim=-1, keepdim=True) <= threshold


class Entropic(Residual):
    """Weights on the simplex, ``W_t = softmax(A_c)`` over what a layer reads; the sums are their logarithms.

    The softmax is that of the sums which the first token of the chunk leaves, so that later tokens of a chunk read what
    the first one does.
    """

    current = False

    def kept_size(self, sizes: list[tuple[int, int]]) -> int:
        return sum(i * o for i, o in sizes)

    def kept(self, first: Tensor) -> Tensor:
        return first.softmax(-2)

    def weights(self, sums: Tensor, kept: Tensor) -> Tensor:
        return kept

    def product(self, read: Callable[[], Tensor], x: Tensor, kept: Tensor) -> Tensor:
        return x @ kept


class Miras(OnlineMemory):
    """The base of Miras' memories: ``M(x) = x + LN(GELU(x W_1) W_2)``, without momentum.

    Its gates are of each channel, made of the hidden state by maps of low rank: ``step``, ``log_decay`` and Yaad's
    ``threshold`` are ``(b, h, m, e)``. They stand where a gradient's outer product has the channels of the head: they
    multiply what the last layer writes, and in the first of two what it reads. The paper writes them as vectors beside
    the error of a linear memory, which is the former, and leaves open where in two layers they stand.

    Args:
        as of `OnlineMemory`. forget: the most that α may be. A step by the gradient of a normed layer is the larger the
            smaller its weights, and decay makes these small: then rounding errors grow from token to token.
        rank: of the maps that make the gates; None for gates of each head instead, ``(b, h, m)``.

    Raises:
        ValueError: ``forget`` outside of 0 to 1; gates by channel of which a chunk's product could not be told from 0.
    """

    layer = LayerSpec(rotary=False, convolution=4, activation="silu", norm=True, gate="silu")

    def __init__(
        self,
        heads: int,
        head_dim: int,
        value_dim: int | None = None,
        chunk: int = 16,
        hidden: int = 4,
        step: float | None = None,
        forget: float = 0.05,
        rank: int | None = 32,
    ) -> None:
        if not 0 < forget < 1:
            raise wrong("forget", str(forget), "above 0 and below 1")
        if rank is not None and rank < 1:
            raise wrong("rank", str(rank), "at least 1, or None for gates of each head")
        if rank is not None and -chunk * math.log1p(-forget) > LONGEST:
            most = f"chunk · −log(1 − forget) at most {LONGEST:g} with gates of each channel"
            raise wrong("forget", f"{forget:g} with chunks of {chunk}", most)
        self.forget = forget
        self.shape: dict[str, Any] = {} if rank is None else {"dim": "value", "rank": rank}
        super().__init__(heads, head_dim, value_dim, chunk, hidden, step)

    def bounded(self, most: float) -> Mapping[str, Signal]:
        low = math.log1p(-self.forget)
        decay = Signal("log of what stays of the memory, log(1 − α)", low=low, high=0, start=low / 10, **self.shape)
        return {"step": replace(step_of(most), **self.shape), "log_decay": decay}


def miras_examples(kind: type[Miras]) -> Sequence[Example]:
    """Gates of each channel, and of each head."""
    return [
        Example("chunks of 5", kind(2, 5, 5, chunk=5, hidden=2), value_dim=5, longest=67),
        Example("gates of each head", kind(2, 5, 5, chunk=5, hidden=2, rank=None), value_dim=5, longest=67),
    ]


@published(
    "moneta",
    family="linear",
    row=351,
    title="It's All Connected: A Journey Through Test-Time Memorization, Attentional Bias, Retention, and Online "
    "Optimization",
    arxiv="2504.13173",
    year=2025,
    fidelity="hand values",
    claim=(
        Claim(
            "chunks of matrix products are the recurrence, token by token, with its gradients",
            cells="memory.forms_of(rule=moneta)",
            holds="common.within(most=1e-10)",
        ),
        Claim(
            "a linear memory with p = q = 2 that forgets nothing is the delta rule",
            cells="memory.linear_of(rule=moneta)",
            holds="common.within(most=1e-10)",
        ),
        Claim(
            "recalls at least as much as linear attention from a state of the same size",
            cells="memory.recall_of(rule=moneta)",
            holds="memory.recalls_as_much",
        ),
    ),
)
class Moneta(Miras):
    """A memory network that learns by the p-th power of its error and is kept small by the q-norm of its weights.

        A_t = (1 − α_t) A_{t−1} − η_t ∇‖M(W_c; k_t) − v_t‖_p^p,   W_t = A_t / ‖A_t‖_q^{q−2},   o_t = M(W_t; q_t)

    η and α, of each channel, are the signals ``step`` and ``log_decay`` = log(1 − α). W_c are the weights at the start
    of the token's chunk; the norm is taken once a chunk, of the sums that its first token leaves, so that ``chunk=1``
    is the equation.

    Args:
        as of `Miras`. p: of the loss, at least 2. q: of the norm, at least 2, which is no norm at all.

    Raises:
        ValueError: p or q below 2.

    Paper: Behrouz et al., arXiv 2504.13173.
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        value_dim: int | None = None,
        chunk: int = 16,
        hidden: int = 4,
        step: float | None = None,
        forget: float = 0.001,
        p: float = 3.0,
        q: float = 4.0,
        rank: int | None = 32,
    ) -> None:
        for name, power in (("p", p), ("q", q)):
            if power < 2:
                raise wrong(name, str(power), "at least 2")
        self.rule = PowerLoss(p, q)
        super().__init__(heads, head_dim, value_dim, chunk, hidden, step, forget, rank)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return miras_examples(cls)


@published(
    "yaad",
    family="linear",
    row=351,
    title="It's All Connected: A Journey Through Test-Time Memorization, Attentional Bias, Retention, and Online "
    "Optimization",
    arxiv="2504.13173",
    year=2025,
    fidelity="hand values",
    claim=(
        Claim(
            "chunks of matrix products are the recurrence, token by token, with its gradients",
            cells="memory.forms_of(rule=yaad)",
            holds="common.within(most=1e-10)",
        ),
        Claim(
            "with 5% outliers among the values it recalls better than by the squared error",
            cells="memory.outliers",
            holds="memory.withstands",
        ),
        Claim(
            "recalls at least as much as linear attention from a state of the same size",
            cells="memory.recall_of(rule=yaad, steps=2000)",
            holds="memory.recalls_as_much",
        ),
    ),
)
class Yaad(Miras):
    """A memory network that learns by a Huber loss, so that an outlier among the values moves it by a bounded step.

        W_t = (1 − α_t) W_{t−1} − η_t ∇ℓ(M(W_c; k_t) − v_t),   ℓ(e) = ‖e‖² if ‖e‖ ≤ δ_t, else δ_t ‖e‖_1

    η, α and δ, of each channel, are the signals ``step``, ``log_decay`` = log(1 − α) and ``threshold``. W_c are the
    weights at the start of the token's chunk, W_{t−1} with ``chunk=1``.

    Args: as of `Miras`.

    Paper: Behrouz et al., arXiv 2504.13173.
    """

    rule = HuberLoss()

    def bounded(self, most: float) -> Mapping[str, Signal]:
        meaning = "the length of the error beyond which it counts as an outlier, δ"
        threshold = Signal(meaning, low=0, start=1.0, **self.shape)
        return {**super().bounded(most), "threshold": threshold}

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return miras_examples(cls)


@published(
    "memora",
    family="linear",
    row=351,
    title="It's All Connected: A Journey Through Test-Time Memorization, Attentional Bias, Retention, and Online "
    "Optimization",
    arxiv="2504.13173",
    year=2025,
    fidelity="hand values",
    claim=(
        Claim(
            "chunks of matrix products are the recurrence, token by token, with its gradients",
            cells="memory.forms_of(rule=memora)",
            holds="common.within(most=1e-10)",
        ),
        Claim(
            "recalls at least as much as linear attention from a state of the same size",
            cells="memory.recall_of(rule=memora, steps=2000)",
            holds="memory.recalls_as_much",
        ),
    ),
)
class Memora(Miras):
    """A memory network whose weights stay on the simplex: a step of entropic mirror descent for every token.

        W_t = softmax((1 − α_t) log W_{t−1} − η_t ∇‖M(W_c; k_t) − v_t‖²),   o_t = M(W_t; q_t)

    η and α, of each channel, are the signals ``step`` and ``log_decay`` = log(1 − α); the softmax is over what a layer
    reads. W_c are the weights at the start of the token's chunk. The logarithms add up over a chunk exactly; they
    become weights with the first token of each, whose weights all of its tokens read, so that ``chunk=1`` is the
    equation.

    Args: as of `Miras`.

    Paper: Behrouz et al., arXiv 2504.13173.
    """

    rule = Entropic()

    def spread(self, size: int) -> float:
        return 1.0

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return miras_examples(cls)
