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
    claim=Claim(
        text="equals the gated delta rule where all channels decay alike; forgets one channel and keeps another by one "
        "token, which the gated delta rule cannot",
        status="works",
        figure="the step-by-step recurrence and the gated delta rule within 1e-9 in float64; after a decay of e^-50 in "
        "half of the channels, nothing is left of pairs whose keys lie there (1e-9), and all of the others (1e-9)",
        command="pytest tests/claims/test_recurrent.py",
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
