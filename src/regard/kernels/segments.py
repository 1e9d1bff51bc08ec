"""Softmax and sums over segments: the numbers that share an index, in any order."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.mechanism import accumulate_dtype


def segment_softmax(scores: Tensor, index: Tensor, count: int) -> Tensor:
    """Softmax of each column over the rows that share an index: ``exp(s_e) / Σ_{index f = index e} exp(s_f)``.

    The largest score of each segment is taken off first; half precision is summed in float32.

    Args:
        scores: ``(E, h)``. index: ``(E,)``, below ``count``; a segment may be empty.
    """
    wide = scores.to(accumulate_dtype(scores.dtype))
    places = index[:, None].expand_as(wide)
    peak = wide.new_full((count, wide.shape[1]), -torch.inf).scatter_reduce(0, places, wide.detach(), "amax")
    powers = torch.exp(wide - peak[index])
    return (powers / segment_sum(powers, index, count)[index]).to(scores.dtype)


def segment_sum(rows: Tensor, index: Tensor, count: int) -> Tensor:
    """The sums of the ``rows (E, …)`` that share an index: ``(count, …)``, zeros where none has it."""
    wide = rows.to(accumulate_dtype(rows.dtype))
    return wide.new_zeros(count, *rows.shape[1:]).index_add(0, index, wide).to(rows.dtype)
