"""Positive numbers as the bits of half precision."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = 1 << 15
"""How many numbers without a sign half precision has."""


def to_half(x: Tensor) -> Tensor:
    """Codes of numbers from zero up, as the nearest in half precision that is finite."""
    return x.clamp(max=torch.finfo(torch.float16).max).to(torch.float16).view(torch.int16).long()


def from_half(codes: Tensor) -> Tensor:
    """Numbers of such codes, float32."""
    return codes.to(torch.int16).view(torch.float16).float()
