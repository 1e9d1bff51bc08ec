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
    claim=Claim(
        text="a key written again returns its last value, where linear attention returns the sum; chunked is recurrent",
        status="works",
        figure="read-out of a rewritten key: error 1e-9 of the last value, against 1.0 for linear attention; recall of "
        "8 pairs 90% with 2,048 numbers of state, linear attention with rotary positions 33% with 2,112 (three seeds)",
        command="pytest tests/claims/test_recurrent.py; python benchmarks/recall.py FOLDER",
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
