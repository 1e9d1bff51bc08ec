"""Fastmax: attention whose exponential is a polynomial, of standardised queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.mechanism import Example, Host, Traits
from regard.mechanisms.linear.base import Recurrent
from regard.mechanisms.linear.series import series, series_dim


@published(
    "fastmax",
    family="linear",
    row=36,
    title="FAST: Factorizable Attention for Speeding up Transformers",
    arxiv="2402.07901",
    year=2024,
    aliases=("fast", "factorizable_attention"),
    claim=Claim(
        text="equals the explicit polynomial attention, gradients too; twice the tokens up to 8k cost at most 2.3 "
        "times; a small language model within 5% of softmax's loss at p = 2",
        status="partly",
        figure="equal to 1e-9 with gradients, FLOPs double; p = 2 causal only; the language model is not measured",
        command="pytest tests/claims/test_taylor.py",
    ),
)
class Fastmax(Recurrent):
    """Softmax with a polynomial of order two in the place of the exponential, so that it factors.

        A_ij = f(q̂_i · k̂_j) / Σ_{j' ≤ i} f(q̂_i · k̂_j'),   f(s) = 1 + s + s²/2,   x̂ = (x − mean x) / std x over channels

    A is ``weights``; f is positive. Products are not divided by √d, as standardising bounds them.

    Args:
        order: p = 2. The paper's p = 1 has weights of any sign whose sums may vanish; it is refused.

    Raises:
        ValueError: another order.

    Paper: Gerami et al., arXiv 2402.07901; standard deviations are of the population, as in its code.
    """

    traits = Traits(two_sided=False, time="linear", state="constant", rows="one", sign="nonnegative")
    host = Host()
    normalised = True

    def __init__(self, order: Literal[2] = 2):
        super().__init__()
        if order != 2:
            raise wrong("order", str(order), "2: of order 1 the weights' sums may vanish")
        self.order = order

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return series(standardised(q), self.order), series(standardised(k), self.order)

    def feature_dim(self, head_dim: int) -> int:
        return series_dim(head_dim, self.order)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("plain", cls(), heads=3, kv_heads=3), Example("grouped", cls(), heads=4, kv_heads=2)]


def standardised(x: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the channels."""
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
