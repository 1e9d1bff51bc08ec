"""RWKV-7: decays by channel, and a removal whose key and rate are apart from what is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.layer import Gate, Norm, Shift
from regard.core.mechanism import Example, LayerSpec, Signal, check_sizes
from regard.kernels.scan import Inputs
from regard.mechanisms.linear.base import Recurrent

SLOWEST = 0.6065306597  # exp(−1/2): a block's channels keep at least exp of minus this of a token's past
LEAST = -60.0  # what is taken away is read before the decay, as e^60 times what is read after it


@published(
    "rwkv7",
    family="linear",
    title='RWKV-7 "Goose" with Expressive Dynamic State Evolution',
    arxiv="2503.14456",
    year=2025,
    aliases=("goose", "generalized_delta_rule"),
    fidelity="third-party code",
    claim=(
        Claim(
            "a memory takes away what another key recalls while it writes",
            cells="recurrent.forms_of(kind=rwkv7)",
            holds="common.within(most=1e-9)",
        ),
        Claim(
            "with the write key removed and equal rates it is the gated delta rule",
            cells="recurrent.write_key_removed",
            holds="common.within(most=1e-9)",
        ),
    ),
)
class RWKV7(Recurrent):
    """Linear attention that decays by channel, and takes away what a key of its own recalls, by channel too.

        S_t = (diag(w_t) − (a_t ⊙ κ̂_t) κ̂_tᵀ) S_{t−1} + k̃_t v_tᵀ,   o_t = S_tᵀ r_t,   w_t = exp(log_decay_t), r = q
        κ̂ = κ / |κ|,   k̃ = k ⊙ (1 + (a − 1) ⊙ α)

    w, κ and a are given by the signals ``log_decay``, ``removed`` and ``rate``, each ``(b, h, m, d)``; α is the
    parameter ``gain (h, d)``. In a block w keeps at least exp(−0.61), and κ is the key times a learned number for each
    channel. Token shift, group norm, the bonus of the token itself, which follows the norm, and the gate of low rank
    are its host's, and so is the mixture of each later layer's values with those of the first.

    Args:
        heads, head_dim: of q.

    Raises:
        ValueError: q has other heads or another d.

    Paper: Peng et al., arXiv 2503.14456.
    """

    signals: ClassVar = {
        "log_decay": Signal(
            "log of what stays of each channel",
            dim="key",
            low=LEAST,
            high=0,
            start=(-0.0025, -0.38),
            rank=64,
            inner="tanh",
            form="sigmoid",
            scale=SLOWEST,
        ),
        "removed": Signal("the key whose value is taken away", dim="key", of="key"),
        "rate": Signal("how much of it, by channel", dim="key", low=0, high=1, start=0.45, rank=64),
    }
    layer = LayerSpec(
        rotary=False,
        shift=Shift(),
        norm=Norm(centred=True, each=True, eps=64e-5),
        bonus=True,
        gate=Gate(None, rank=128, inner="sigmoid"),
        values=32,
    )
    by_channel = True
    kind = "removal"

    def __init__(self, heads: int = 4, head_dim: int = 64) -> None:
        super().__init__()
        if min(heads, head_dim) < 1:
            raise wrong("heads, head_dim", f"{heads}, {head_dim}", "at least 1 each")
        self.gain = nn.Parameter(torch.ones(heads, head_dim))

    def log_decay(self, k: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        return signals["log_decay"]

    def erase_vectors(self, k: Tensor, signals: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        key = F.normalize(signals["removed"], dim=-1)
        # The removal reads the state before it decays, the scan after.
        return key * (-signals["log_decay"]).exp(), key * signals["rate"]

    def scan_inputs(self, q, k, v, real, resets, signals) -> Inputs:
        x = super().scan_inputs(q, k, v, real, resets, signals)
        return replace(x, k=self.written(x.k, signals))

    def written(self, k: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        return k * (1 + (signals["rate"].to(k.dtype) - 1) * self.gain.to(k.dtype)[:, None])

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        check_sizes(q, *self.gain.shape)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        d = Example.head_dim
        return [Example("plain", cls(3, d), heads=3, kv_heads=3), Example("grouped", cls(4, d), 4, 2)]
