"""Kimi delta attention: the gated delta rule with a decay for each channel of the key."""

from __future__ import annotations

from typing import ClassVar

from regard.core.atlas import Claim, published
from regard.core.layer import Gate, LayerSpec, Norm
from regard.core.mechanism import Signal
from regard.mechanisms.linear.deltanet import STRENGTH
from regard.mechanisms.linear.gated_deltanet import GatedDeltaNet


@published(
    "kimi_delta",
    family="linear",
    title="Kimi Linear: An Expressive, Efficient Attention Architecture",
    arxiv="2510.26692",
    year=2025,
    aliases=("kda", "kimi_delta_attention"),
    fidelity="third-party code",
    claim=(
        Claim(
            "equals the gated delta rule where all channels decay alike",
            cells="recurrent.alike",
            holds="common.within(most=1e-9)",
        ),
        Claim(
            "forgets one channel and keeps another by one token, which the gated delta rule cannot",
            cells="recurrent.half_of_the_channels",
            holds="recurrent.forgets_apart",
        ),
        Claim("chunked is recurrent", cells="recurrent.forms_of(kind=kimi_delta)", holds="common.within(most=1e-9)"),
    ),
)
class KimiDelta(GatedDeltaNet):
    """The delta rule over a memory whose every key channel fades by a data-dependent rate of its own.

        S_t = (I − β_t k_t k_tᵀ) diag(α_t) S_{t−1} + β_t k_t v_tᵀ,   o_t = S_tᵀ q_t / √d,   α_t = exp(log_decay_t)

    α and β are given by the signals ``log_decay (b, h, m, d)`` and ``beta (b, h, m)``; the host is that of Kimi Linear:
    short convolution, SiLU, unit length, norm of each head and sigmoid gate.

    Args:
        negative: the strength is 2 β, as in `GatedDeltaNet`.

    Paper: Kimi Team, arXiv 2510.26692.
    """

    signals: ClassVar = {
        "log_decay": Signal(
            "log of what stays of each channel", dim="key", high=0, start=-0.05, rank="value", rate=True
        ),
        "beta": STRENGTH,
    }
    layer = LayerSpec(
        rotary=False,
        convolution=4,
        activation="silu",
        unit=True,
        norm=Norm(eps=1e-5),
        gate=Gate("sigmoid", rank="value", bias=True),
    )
    by_channel = True
