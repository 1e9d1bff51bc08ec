"""Softmax attention as a sum of recurrences, one for each term of the exponential's series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.mechanism import Example, LayerSpec, Traits
from regard.mechanisms.linear.base import Recurrent
from regard.mechanisms.linear.taylor_features import series, series_dim

MOST = 1 << 16
"""Features that a state may have for each head."""


@published(
    "softmax_rnn",
    family="linear",
    row=338,
    title="On the Expressiveness of Softmax Attention: A Recurrent Neural Network Perspective",
    arxiv="2507.23632",
    year=2025,
    aliases=("softmax_as_rnn", "taylor_rnn"),
    fidelity="hand values",
    claim=(
        Claim(
            ("linear recurrences up to order N give exp(q·k) with an error that falls as 2^(N+1)/(N+1)! for |q·k| ≤ 2"),
            cells="taylor.series",
            holds="taylor.is_the_first_term",
        ),
        Claim(
            "the recurrence is the series", cells="taylor.causal(name=softmax_rnn)", holds="common.within(most=1e-9)"
        ),
        Claim("higher orders come nearer to softmax attention", cells="taylor.nearer", holds="taylor.approaches"),
        Claim("a small model's loss falls with N", cells="taylor.terms", holds="taylor.more_is_better"),
        Claim(
            "a norm of the output does as well as the denominator: two terms are within 1% of softmax",
            cells="taylor.terms",
            holds="taylor.two_are_near",
        ),
    ),
)
class SoftmaxRecurrence(Recurrent):
    """The exponential's Taylor series up to order N, each term a recurrence over keys to that power.

        A_ij = f_N(s_ij) / Σ_{j' ≤ i} f_N(s_ij'),   f_N(s) = Σ_{n ≤ N} sⁿ / n!,   s_ij = q_i · k_j / √d
        S^{(n)}_t = S^{(n)}_{t−1} + k_t^{⊗n} v_tᵀ

    A is ``weights``; N is ``order``. N = 1 without the denominator is linear attention, N → ∞ softmax. State:
    Σ_n dⁿ (e + 1) numbers a head.

    Args:
        order: N, at least 1. normaliser: "denominator" as above, which needs an even order so that f_N is positive; or
            "none", where a gate or a norm of the output in the block takes its place.

    Raises:
        ValueError: an order below 1, an odd one with the denominator, or more than 65,536 features.

    Paper: Mongaras and Larson, arXiv 2507.23632.
    """

    layer = LayerSpec()

    def __init__(self, order: int = 2, normaliser: Literal["denominator", "none"] = "denominator"):
        super().__init__()
        if normaliser not in ("denominator", "none"):
            raise wrong("normaliser", repr(normaliser), "denominator or none")
        if order < 1 or (normaliser == "denominator" and order % 2):
            raise wrong("order", str(order), "at least 1, and even with the denominator")
        self.order, self.normalised = order, normaliser == "denominator"
        base = Traits(bidirectional=False, time="linear", state="constant")
        self.traits = replace(base, rows="one", sign="nonnegative") if self.normalised else base
        self.layer = LayerSpec() if self.normalised else LayerSpec(norm=True)

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.feature_dim(q.shape[-1]) > MOST:
            raise wrong("order", f"{self.order} with {q.shape[-1]} channels", f"at most {MOST:,} features")
        return series(q * q.shape[-1] ** -0.5, self.order), series(k, self.order)

    def feature_dim(self, head_dim: int) -> int:
        return series_dim(head_dim, self.order)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("order 2", cls(), heads=3, kv_heads=3),
            Example("order 1 without denominator, grouped", cls(1, "none"), heads=4, kv_heads=2),
            Example("order 3 without denominator", cls(3, "none")),
        ]
