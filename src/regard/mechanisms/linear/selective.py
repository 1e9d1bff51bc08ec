"""The selective scan: a token is taken in, and what came before it fades, by a step of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from regard.core.mechanism import Signal
from regard.mechanisms.linear.base import Recurrent

STEPS = (0.001, 0.1)
"""Δ of the first and last head at the start."""


class Selective(Recurrent):
    """The base of selective state spaces.

        h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t x_tᵀ,   y_t = C_tᵀ h_t;   C = q, B = k, x = v

    Δ is the signal ``step (b, h, m)``; a subclass gives Δ A as `log_decay`.
    """

    signals: ClassVar = {"step": Signal("Δ, how much of the token is taken in", low=0, start=STEPS)}

    def write_values(self, v: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        return v * signals["step"][..., None]

    def scaled(self, weights: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        return weights * signals["step"][..., None, :].to(weights.dtype)
