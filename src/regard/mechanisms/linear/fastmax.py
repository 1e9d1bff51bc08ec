"""Fastmax: attention whose exponential is a polynomial, of standardised queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, rsqrt

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.mechanism import Example, LayerSpec
from regard.mechanisms.linear.base import Averaged
from regard.mechanisms.linear.taylor_features import series, series_dim


@published(
    "fastmax",
    family="linear",
    row=36,
    title="FAST: Factorizable Attention for Speeding up Transformers",
    arxiv="2402.07901",
    year=2024,
    aliases=("fast", "factorizable_attention"),
    fidelity="authors' code",
    claim=(
        Claim(
            "equals the explicit polynomial attention, gradients too",
            cells="taylor.fastmax",
            holds="taylor.equal_and_positive",
        ),
        Claim(
            "twice the tokens up to 8k cost at most 2.3 times",
            cells="taylor.doubling",
            holds="common.at_most(figure=ratio, most=2.3, said='times the time from 4k to 8k', form='.2f')",
        ),
        Claim(
            "a small language model is within 5% of softmax's loss at p = 2",
            cells="taylor.bytes_lm",
            holds="taylor.within_five_percent",
        ),
    ),
)
class Fastmax(Averaged):
    """Softmax with a polynomial of order one or two in the place of the exponential, so that it factors.

        A_ij = f(s_ij) / Σ_j f(s_ij),   f(s) = Σ_{l ≤ p} s^l / l!,   s_ij = q̂_i · k̂_j / τ,
        x̂ = (x − mean x) / std x over the d channels,   τ = 1 for p = 2 and d for p = 1

    A is ``weights``; p is ``order``. f of order two is positive everywhere; 1 + s is not below zero as |s| ≤ 1, for
    which the authors' code divides by the largest norms of a sequence where we divide by their bound √d: theirs would
    look ahead. State: ``(1 + d)(e + 1)`` numbers a head for p = 1, ``(1 + d + d²)(e + 1)`` for p = 2.

    Args:
        order: p, 1 or 2.

    Raises:
        ValueError: another order.

    Paper: Gerami et al., arXiv 2402.07901; standard deviations are of the population, as in its code.
    """

    layer = LayerSpec()

    def __init__(self, order: Literal[1, 2] = 2):
        super().__init__()
        if order not in (1, 2):
            raise wrong("order", str(order), "1 or 2")
        self.order = order

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        temperature = q.shape[-1] if self.order == 1 else 1
        return series(standardised(q) / temperature, self.order), series(standardised(k), self.order)

    def feature_dim(self, head_dim: int) -> int:
        return series_dim(head_dim, self.order)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("p = 2", cls(), heads=3, kv_heads=3),
            Example("p = 1, grouped", cls(1), heads=4, kv_heads=2),
        ]


def standardised(x: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the channels."""
    centred = x - x.mean(-1, keepdim=True)
    return centred * rsqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
