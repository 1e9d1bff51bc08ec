"""State-space duality: Mamba-2 as attention with a scalar decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.layer import Gate, Norm
from regard.core.mechanism import Example, LayerSpec
from regard.mechanisms.linear.selective import Selective


@published(
    "mamba2",
    family="linear",
    title="Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality",
    arxiv="2405.21060",
    year=2024,
    aliases=("ssd", "state_space_duality"),
    fidelity="third-party code",
    claim=Claim(
        ("the state-space recurrence h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t x_tᵀ, y_t = C_tᵀ h_t is masked attention"),
        cells="recurrent.forms_of(kind=mamba2)",
        holds="common.within(most=1e-9)",
    ),
)
class Mamba2(Selective):
    """A selective state-space layer with one decay for each head, read as attention.

        H_t = exp(Δ_t A_h) H_{t−1} + Δ_t B_t x_tᵀ,   y_t = H_tᵀ C_t;   C = q, B = k, x = v

    so ``A_ij = C_i · B_j exp(A_h Σ_{j < t ≤ i} Δ_t) Δ_j``. Δ is the signal ``step (b, h, m)``; A_h is −exp of the
    parameter ``log_rate (h,)``, from 1 to 16 at the start, the range that the authors draw from. B and C that heads
    share, short convolution, SiLU, skip D x, and the norm over all heads behind the gate are its host's.

    Args:
        heads: number of heads, one rate each.

    Raises:
        ValueError: q has another number of heads.

    Paper: Dao and Gu, arXiv 2405.21060.
    """

    layer = LayerSpec(
        rotary=False,
        convolution=4,
        bias=True,
        activation="silu",
        skip=True,
        norm=Norm("group", eps=1e-5),
        gate=Gate("silu", before_norm=True),
        projection="multi_value",
    )

    def __init__(self, heads: int = 4):
        super().__init__()
        if heads < 1:
            raise wrong("heads", str(heads), "at least 1")
        self.log_rate = nn.Parameter(torch.linspace(1, 16, heads).log())

    def log_decay(self, k: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        return -self.log_rate.to(k.dtype).exp()[None, :, None] * signals["step"]

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        if q.shape[1] != len(self.log_rate):
            raise wrong("q", f"{q.shape[1]} heads", f"{len(self.log_rate)}, the number of rates")

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("plain", cls(3), heads=3, kv_heads=3), Example("grouped", cls(4), heads=4, kv_heads=2)]
