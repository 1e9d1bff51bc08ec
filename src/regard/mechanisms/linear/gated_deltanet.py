"""The gated delta rule: forgetting all, and replacing what the key recalls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.mechanism import Example, LayerSpec, Signal
from regard.mechanisms.linear.base import Recurrent
from regard.mechanisms.linear.deltanet import STRENGTH


@published(
    "gated_deltanet",
    family="linear",
    title="Gated Delta Networks: Improving Mamba2 with Delta Rule",
    arxiv="2412.06464",
    year=2024,
    aliases=("gated_delta_rule", "gdn"),
    fidelity="third-party code",
    claim=(
        Claim("equals the delta rule without decay", cells="recurrent.without_decay", holds="common.within(most=1e-9)"),
        Claim(
            "forgets everything by one token of strong decay, which the delta rule cannot",
            cells="recurrent.strong_decay",
            holds="recurrent.forgets",
        ),
        Claim(
            "chunked is recurrent", cells="recurrent.forms_of(kind=gated_deltanet)", holds="common.within(most=1e-9)"
        ),
    ),
)
class GatedDeltaNet(Recurrent):
    """The delta rule over a memory that fades by a data-dependent rate for each head.

        S_t = α_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ,   o_t = S_tᵀ q_t / √d,   α_t = exp(log_decay_t)

    α and β are given by the signals ``log_decay (b, h, m)`` and ``beta (b, h, m)``; the host is that of Qwen3-Next:
    short convolution, SiLU, unit length, norm of each head and SiLU gate.

    Args:
        negative: the strength is 2 β, so that a token may turn round what its key recalls: I − 2 β k kᵀ has eigenvalues
            down to −1.

    Papers: Yang et al., arXiv 2412.06464; negative eigenvalues: Grazzi et al., 2411.12537.
    """

    signals: ClassVar = {
        "log_decay": Signal("log of what stays", high=0, start=(-0.001, -0.5), rate=True),
        "beta": STRENGTH,
    }
    layer = LayerSpec(rotary=False, convolution=4, activation="silu", unit=True, norm=True, gate="silu")
    kind = "delta"

    def __init__(self, negative: bool = False) -> None:
        super().__init__()
        self.negative = negative

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q * q.shape[-1] ** -0.5, k

    def log_decay(self, k: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        return signals["log_decay"]

    def write_strength(self, signals: Mapping[str, Tensor]) -> Tensor:
        return 2 * signals["beta"] if self.negative else signals["beta"]

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("plain", cls(), heads=3, kv_heads=3),
            Example("negative eigenvalues, grouped", cls(negative=True), heads=4, kv_heads=2),
        ]
