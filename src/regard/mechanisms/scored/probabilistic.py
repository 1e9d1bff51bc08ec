"""Probabilistic attention: the keys are the means of a Gaussian mixture, which the queries and known values adapt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Mechanism, Traits, accumulate_dtype, repeat_heads
from regard.kernels import packing, tiled
from regard.kernels.tiled import Span
from regard.mechanisms.scored.parts.tile_scores import squared_distance

Prior = Literal["norm", "uniform"]


@dataclass(frozen=True)
class Known:
    """Values that are known for some queries.

    Args:
        values: ``(…, n, e)``. given: ``(…, n)`` bool, for which queries. precision: β, of a value around its mean.
    """

    values: Tensor
    given: Tensor
    precision: float


@dataclass(frozen=True)
class Mixture:
    """The joint density of queries and values that keys and values stand for.

        p(q_i, v_i) = Σ_j π_j N(q_i; ζ_j, 1/α) N(v_i; μ_j, 1/β),   ζ_j ~ N(k_j, 1/p),   μ_j ~ N(v_j, 1/r)

    Args:
        keys: ζ, ``(…, m, d)``. means: μ, ``(…, m, e)``. log_prior: log π up to a constant, ``(…, m)``. alpha: α.
        first_keys, first_means: k and v. key_precision, mean_precision: p and r, above zero.
    """

    keys: Tensor
    means: Tensor
    log_prior: Tensor
    alpha: float
    first_keys: Tensor
    first_means: Tensor
    key_precision: float = 1.0
    mean_precision: float = 1.0

    @classmethod
    def of(
        cls, k: Tensor, v: Tensor, alpha: float, prior: Prior, key_precision: float = 1.0, mean_precision: float = 1.0
    ) -> Mixture:
        """Before any adaptation; ``prior`` "norm" is π_j ∝ exp(α |k_j|² / 2), which makes it softmax attention."""
        log_prior = alpha / 2 * k.square().sum(-1) if prior == "norm" else torch.zeros_like(k[..., 0])
        return cls(k, v, log_prior, alpha, k, v, key_precision, mean_precision)

    def log_joint(self, q: Tensor, known: Known | None = None) -> Tensor:
        """``log π_j − α |q_i − ζ_j|² / 2 − β |v_i − μ_j|² / 2``, the last where v_i is known: ``(…, n, m)``."""
        scores = self.log_prior[..., None, :] - self.alpha / 2 * squared_distance(q, self.keys)
        if known is None:
            return scores
        apart = known.precision / 2 * squared_distance(known.values, self.means)
        return scores - torch.where(known.given[..., None], apart, 0)

    def weights(self, q: Tensor, known: Known | None = None) -> Tensor:
        """``w_ij = p(j | q_i, v_i)``, ``(…, n, m)``: attention."""
        return torch.softmax(self.log_joint(q, known), -1)

    def read(self, q: Tensor, known: Known | None = None) -> Tensor:
        """``Σ_j w_ij μ_j``, the expected value of each query."""
        return self.weights(q, known) @ self.means

    def adapt_keys(self, q: Tensor, known: Known | None = None) -> Mixture:
        """A step of EM: ``ζ_j = (p k_j + α Σ_i w_ij q_i) / (p + α Σ_i w_ij)``."""
        w = self.weights(q, known).mT
        return self.with_keys(w @ q, w.sum(-1, keepdim=True))

    def with_keys(self, sums: Tensor, counts: Tensor) -> Mixture:
        """The keys after a step, from ``Σ_i w_ij q_i`` and ``Σ_i w_ij``."""
        p = self.key_precision
        return replace(self, keys=(p * self.first_keys + self.alpha * sums) / (p + self.alpha * counts))

    def adapt_values(self, q: Tensor, known: Known) -> Mixture:
        """A step of EM: ``μ_j = (r v_j + β Σ_i w_ij v_i) / (r + β Σ_i w_ij)`` over the queries whose value is known."""
        w = (self.weights(q, known) * known.given[..., None]).mT
        beta, r = known.precision, self.mean_precision
        counts = w.sum(-1, keepdim=True)
        return replace(self, means=(r * self.first_means + beta * (w @ known.values)) / (r + beta * counts))

    def objective(self, q: Tensor, known: Known | None = None) -> Tensor:
        """The log posterior up to a constant, ``(…)``: each step of EM raises it or leaves it."""
        moved = self.key_precision / 2 * (self.keys - self.first_keys).square().sum((-1, -2))
        turned = self.mean_precision / 2 * (self.means - self.first_means).square().sum((-1, -2))
        return torch.logsumexp(self.log_joint(q, known), -1).sum(-1) - moved - turned


@dataclass(frozen=True)
class Exponential:
    """``p_ij = exp(s_ij)``."""

    def __call__(self, scores: Tensor, span: Span) -> Tensor:
        return scores.exp()


@published(
    "probabilistic",
    family="scored",
    row=190,
    title="Probabilistic Attention for Interactive Segmentation",
    arxiv="2106.15338",
    year=2021,
    aliases=("probabilistic_attention", "key_adaptation"),
    fidelity="authors' code",
    claim=(
        Claim(
            "without adaptation it is softmax attention",
            cells="probabilistic.unadapted",
            holds="probabilistic.is_softmax",
        ),
        Claim("each step of EM raises the posterior", cells="probabilistic.steps_of_em", holds="probabilistic.rises"),
        Claim(
            "adapted keys segment better from few clicks",
            cells="probabilistic.clicked",
            holds="probabilistic.segments_better",
        ),
        Claim(
            "known values correct others of their class",
            cells="probabilistic.propagated",
            holds="probabilistic.corrects",
        ),
    ),
)
class Probabilistic(Mechanism):
    """Attention as inference in a Gaussian mixture around the keys, which first move towards the queries by EM.

        A_ij ∝ π_j N(q_i; ζ_j, 1/α),   ζ_j ← (p k_j + α Σ_i A_ij q_i) / (p + α Σ_i A_ij),  ``steps`` times from ζ = k

    α is ``alpha``, p ``precision``, π ``prior``; "norm" is π_j ∝ exp(α |k_j|² / 2), which at no steps is softmax
    attention. Values that are known for some queries come in through `Mixture`, which holds the whole model. The prior
    of a moving key stays around k, so that every step raises the posterior; the authors' code moves it too.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; bidirectional.
    Cost: that of softmax attention, and about 3/2 of it more for each step; memory O(n + m).

    Args:
        steps: of EM. precision: of a key around where it starts. alpha: of a query around its key, None for 1/√d.
        prior: of the keys.

    Raises:
        ValueError: steps below zero, a precision that is not above zero, or an unknown prior.

    Paper: Gabbur, Bilkhu and Movellan, arXiv 2106.15338; there keys stay near those of the last step, here near the
    first, and π keeps to the first keys, so that the posterior rises. Positions are what the host makes of them.
    """

    traits = Traits(causal=False, rows="at most one", sign="nonnegative", equivariant=True)

    def __init__(
        self, steps: int = 1, precision: float = 1.0, alpha: float | None = None, prior: Prior = "norm"
    ) -> None:
        super().__init__()
        if steps < 0:
            raise wrong("steps", str(steps), "0 or more")
        if not precision > 0 or (alpha is not None and not alpha > 0):
            raise wrong("precision, alpha", f"{precision}, {alpha}", "above 0 each")
        if prior not in get_args(Prior):
            raise wrong("prior", repr(prior), " or ".join(get_args(Prior)))
        self.steps, self.precision, self.alpha = steps, precision, alpha
        self.prior: Prior = prior

    def mixture(self, q: Tensor, k: Tensor, v: Tensor) -> Mixture:
        """The mixture before any step."""
        alpha = q.shape[-1] ** -0.5 if self.alpha is None else self.alpha
        return Mixture.of(k, v, alpha, self.prior, self.precision)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        columns = torch.eye(k.shape[2], dtype=q.dtype, device=q.device).expand(*k.shape[:2], -1, -1)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            mixture = self.mixture(q, repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1]))
            for _ in range(self.steps):
                mixture = mixture.adapt_keys(q)
            return mixture.read(q)

        return run(q, k, columns) if layout.plain else packing.per_sequence(run, q, k, columns, layout)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        return self.weights(q, k, layout)[:, :, rows]  # every row depends on all queries

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            wide, dtype = accumulate_dtype(q.dtype), q.dtype
            q, k, v = (x.to(wide) for x in (q, repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])))
            one, mixture = torch.ones_like(q[..., :1]), self.mixture(q, k, v)
            left = torch.cat([q, one], -1)
            for _ in range(self.steps):
                right = joint(mixture)
                lse = tiled.attend_lse(left, right, torch.ones_like(k[..., :1]), Layout(), tiled.Dot(1)).lse
                back = torch.cat([left, -lse[..., None]], -1)
                right = torch.cat([right, torch.ones_like(right[..., :1])], -1)
                sums = tiled.attend(right, back, left, Layout(), tiled.Dot(1), Exponential())
                mixture = mixture.with_keys(sums[..., :-1], sums[..., -1:])
            return tiled.attend(left, joint(mixture), v, Layout(), tiled.Dot(1)).to(dtype)

        return run(q, k, v) if layout.plain else packing.per_sequence(run, q, k, v, layout)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        n, m, d = shape.n, shape.keys, shape.head_dim
        there, back = tiled.cells(n, m, False), tiled.cells(m, n, False)
        each = there * (d + 1 + shape.values) + self.steps * (there * (d + 2) + back * (2 * d + 3))
        return Cost(2 * shape.batch * shape.heads * each, shape.io_bytes, 0)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("one step", cls(), heads=3, kv_heads=3),
            Example("two steps, uniform, grouped", cls(2, 0.5, 0.7, "uniform"), heads=4, kv_heads=2),
            Example("no steps", cls(0), heads=2, kv_heads=1),
        ]


def joint(mixture: Mixture) -> Tensor:
    """``[α ζ_j, log π_j − α |ζ_j|² / 2]``: its product with [q_i, 1] is `Mixture.log_joint` but for a constant of i."""
    keys, alpha = mixture.keys, mixture.alpha
    return torch.cat([alpha * keys, (mixture.log_prior - alpha / 2 * keys.square().sum(-1))[..., None]], -1)
