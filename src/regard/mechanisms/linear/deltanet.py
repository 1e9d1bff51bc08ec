"""The delta rule: a token replaces what its key recalls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.layer import Norm
from regard.core.mechanism import Example, LayerSpec, Signal
from regard.mechanisms.linear.base import Recurrent

STRENGTH = Signal("how much of what the key recalls is replaced", low=0, high=1)


@published(
    "deltanet",
    family="linear",
    title="Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
    arxiv="2406.06484",
    year=2024,
    aliases=("delta_rule", "fast_weights"),
    fidelity="authors' code",
    claim=(
        Claim("chunked is recurrent", cells="recurrent.forms_of(kind=deltanet)", holds="common.within(most=1e-9)"),
        Claim(
            "a key written again returns its last value, where linear attention returns the sum",
            cells="recurrent.rewritten",
            holds="recurrent.replaces",
        ),
        Claim(
            "it is the better store up to as many pairs as dimensions",
            cells="recurrent.capacity",
            holds="recurrent.stores_better",
        ),
        Claim(
            "it recalls pairs that linear attention of as large a state does not",
            cells="recall.delta_and_linear",
            holds="recall.recalls_more",
        ),
    ),
)
class DeltaNet(Recurrent):
    """Causal linear attention that writes the difference to what the key recalls.

        S_t = (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ,   o_t = S_tᵀ q_t / √d

    β is the signal ``beta (b, h, m)``. Keys are meant to have length one, which its host gives them (short convolution,
    SiLU, unit length), and a norm of each head.

    Papers: Schlag et al., arXiv 2102.11174; in chunks: Yang et al., 2406.06484.
    """

    signals: ClassVar = {"beta": STRENGTH}
    layer = LayerSpec(rotary=False, convolution=4, activation="silu", unit=True, norm=Norm(eps=1e-5))
    kind = "delta"

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q * q.shape[-1] ** -0.5, k

    def write_strength(self, signals: Mapping[str, Tensor]) -> Tensor:
        return signals["beta"]

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("plain", cls(), heads=3, kv_heads=3), Example("grouped", cls(), heads=4, kv_heads=2)]
