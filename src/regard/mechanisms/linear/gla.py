"""Gated linear attention: every channel of the key forgets at its own, data-dependent rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.layer import Norm
from regard.core.mechanism import Example, LayerSpec, Signal
from regard.mechanisms.linear.base import Recurrent

START = -math.log(2) / 16  # σ(0)^{1/16}


@published(
    "gla",
    family="linear",
    title="Gated Linear Attention Transformers with Hardware-Efficient Training",
    arxiv="2312.06635",
    year=2023,
    aliases=("gated_linear_attention",),
    fidelity="authors' code",
    claim=(
        Claim(
            "the chunked form with decays by channel equals the recurrence",
            cells="recurrent.forms_of(kind=gla)",
            holds="common.within(most=1e-9)",
        ),
        Claim("also at decays that overflow the plain form", cells="recurrent.overflowing", holds="recurrent.is_safe"),
    ),
)
class GatedLinear(Recurrent):
    """Causal linear attention whose every key channel decays by a rate that the token sets.

        S_t = diag(α_t) S_{t−1} + k_t v_tᵀ,   o_t = S_tᵀ q_t / √d,   α_t = exp(log_decay_t)

    α is given by the signal ``log_decay (b, h, m, d)``, which a block projects as the paper does, with rank 16:
    α = σ(−x W₁ W₂ − b)^{1/16}. Norm of each head and swish gate are its host's.

    Paper: Yang et al., arXiv 2312.06635.
    """

    signals: ClassVar = {
        "log_decay": Signal("log of what stays of each channel", dim="key", high=0, start=START, rank=16, scale=1 / 16)
    }
    layer = LayerSpec(rotary=False, norm=Norm(eps=1e-5), gate="silu")
    by_channel = True

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q * q.shape[-1] ** -0.5, k

    def log_decay(self, k: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        return signals["log_decay"]

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("plain", cls(), heads=3, kv_heads=3), Example("grouped", cls(), heads=4, kv_heads=2)]
