"""Masks that say no more than causality, padding and a sliding window."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.layout import Layout


def says(mask: Tensor | None, layout: Layout, n: int, m: int, window: int | None) -> bool:
    """Whether a mask ``(b, h, n, m)`` says what the layout does, window included, for tokens that are real."""
    if mask is None:
        return n in (1, m)
    allowed = layout.allowed(n, m, mask.device)
    if window is not None:
        slots = torch.arange(m, device=mask.device)
        allowed = allowed & (slots > slots[m - n :, None] - window)
    real = torch.ones((), dtype=torch.bool) if layout.key_mask is None else layout.key_mask[:, None, m - n :, None]
    return mask.shape[-1] == m and bool((mask & real == allowed & real).all())


def real_tokens_of(padding: Tensor | None, mask: Tensor | None, total: int) -> Tensor | None:
    """``(batch, total)`` bool, the real tokens: as the pass says, or those that see themselves; None: all."""
    if padding is not None:
        return padding[:, :total]
    if mask is None or mask.shape[2:] != (total, total):
        return None
    real = mask[:, 0].diagonal(dim1=1, dim2=2)
    return None if bool(real.all()) else real
