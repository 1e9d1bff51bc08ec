"""The selective scan: Mamba as attention with a decay for each state dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.layer import Norm
from regard.core.mechanism import Example, LayerSpec, Signal, check_sizes
from regard.mechanisms.linear.selective import STEPS, Selective


@published(
    "mamba",
    family="linear",
    title="Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
    arxiv="2312.00752",
    year=2023,
    aliases=("selective_scan", "s6", "mamba1"),
    fidelity="third-party code",
    claim=(
        Claim(
            ("the recurrence h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t x_t, y_t = C_tᵀ h_t of every channel is attention"),
            cells="recurrent.forms_of(kind=mamba)",
            holds="common.within(most=1e-9)",
        ),
        Claim(
            "it is the scan inside of Transformers' Mamba", cells="recurrent.mixer", holds="common.within(most=1e-9)"
        ),
    ),
)
class SelectiveScan(Selective):
    """A selective state-space layer whose every state dimension decays at a rate of its own, read as attention.

        h_t = exp(Δ_t A_h) ⊙ h_{t−1} + Δ_t B_t x_tᵀ,   y_t = h_tᵀ C_t;   C = q, B = k, x = v

    Δ is the signal ``step (b, h, m)``; A_h is −exp of the parameter ``log_rate (h, d)``. Mamba is the case of one value
    a head: heads are its channels, d its state dimensions, and B and C are shared by all heads. Short convolution,
    SiLU, Δ (of low rank), B and C of what these give, skip D x and gate are its host's.

    Args:
        heads: of q. head_dim: d, the state dimensions. normed: whether its host norms what Δ is made of, B and C (RMS),
            as Jamba and Hymba do.

    Raises:
        ValueError: q has other heads or another d.

    Paper: Gu and Dao, arXiv 2312.00752; A starts at −1 … −d as there.
    """

    signals: Mapping[str, Signal] = MappingProxyType(
        {"step": Signal("Δ, how much of the token is taken in", low=0, start=STEPS, rank="sixteenth")}
    )
    layer = LayerSpec(
        rotary=False, convolution=4, bias=True, activation="silu", skip=True, gate="silu", projection="selective"
    )
    by_channel = True

    def __init__(self, heads: int = 4, head_dim: int = 16, normed: bool = False) -> None:
        super().__init__()
        if normed:
            self.signals = {"step": replace(self.signals["step"], inner="rms")}
            self.layer = replace(self.layer, scored=Norm())
        if min(heads, head_dim) < 1:
            raise wrong("heads, head_dim", f"{heads}, {head_dim}", "at least 1 each")
        self.log_rate = nn.Parameter(torch.arange(1.0, head_dim + 1).log().repeat(heads, 1))

    def log_decay(self, k: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        return -self.log_rate.to(k.dtype).exp()[None, :, None] * signals["step"][..., None]

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        check_sizes(q, *self.log_rate.shape)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        d = Example.head_dim
        return [Example("plain", cls(3, d), heads=3, kv_heads=3), Example("grouped", cls(4, d), 4, 2)]
