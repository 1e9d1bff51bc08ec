"""Attention near the diagonal: blocks of queries over overlapping views of the keys, one mask for all blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.reduction import Partial
from regard.kernels.dense import Piece, over

BLOCK = 128  # queries that share a view of the keys, if the window is wider than half of it


def attend(
    q: Tensor, k: Tensor, v: Tensor, size: int, causal: bool, sinks: int = 0, scale: float | None = None
) -> Tensor:
    """Softmax attention to the keys with ``|i - j| < size`` or ``j < sinks``, without padding, fused.

        o_i = Σ_{j ∈ W(i)} p_ij v_j,   p_i = softmax over W(i) of scale q_i · k_j

    Query i of n stands at key ``i + m - n``; queries before the first key get zeros.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``.
    Cost: ``4 cells max(d, e)`` FLOPs a head, memory O(n + m).
    """
    return attend_lse(q, k, v, size, causal, sinks, scale).out


def attend_lse(
    q: Tensor, k: Tensor, v: Tensor, size: int, causal: bool, sinks: int = 0, scale: float | None = None
) -> Partial:
    """``attend`` with the log-sum-exp of each row; both are differentiable."""
    return over(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        pieces(q.shape[2], k.shape[2], size, causal, sinks, q.device),
        scale,
    )


def pieces(n: int, m: int, size: int, causal: bool, sinks: int, device: torch.device) -> list[Piece]:
    """The band as blocks of queries, with what is left over at its ends; then the sinks outside the band."""
    shift, ahead = m - n, 0 if causal else size - 1
    block = BLOCK if 2 * size > BLOCK else BLOCK // 2
    first = min(max(size - 1 - shift, 0), n)  # the first query whose whole past window exists
    blocks = max(n - ahead - first, 0) // block
    last = first + blocks * block
    ends = [slice(0, first), slice(last, n)] if blocks else [slice(0, n)]
    found = [end(rows, n, m, size, causal, device) for rows in ends]
    if blocks:
        found.append(middle(slice(first, last), shift, size, ahead, block, device))
    found += [outside(n, m, size, causal, sinks, device)] if sinks and m else []
    return [piece for piece in found if piece.rows.stop > piece.rows.start and piece.cols.stop > piece.cols.start]


def middle(rows: slice, shift: int, size: int, ahead: int, block: int, device: torch.device) -> Piece:
    """Whole blocks: query a of each sees the keys ``a … a + size - 1 + ahead`` of its view."""
    width = block + size - 1 + ahead
    distance = torch.arange(width, device=device) - torch.arange(block, device=device)[:, None]
    mask = (distance >= 0) & (distance < size + ahead)
    start = rows.start + shift - size + 1
    return Piece(rows, slice(start, start + rows.stop - rows.start + width - block), mask=mask[None, None], block=block)


def end(rows: slice, n: int, m: int, size: int, causal: bool, device: torch.device) -> Piece:
    """Rows that make no whole block, or whose window is cut off by an end of the sequence."""
    shift = m - n
    start = min(max(rows.start + shift - size + 1, 0), m)
    stop = min(max(rows.stop + shift + (0 if causal else size - 1), start), m)
    queries = torch.arange(rows.start, rows.stop, device=device)[:, None] + shift
    distance = queries - torch.arange(start, stop, device=device)
    mask = (distance < size) & ((distance >= 0) if causal else (distance > -size))
    return Piece(rows, slice(start, stop), mask=mask[None, None])


def outside(n: int, m: int, size: int, causal: bool, sinks: int, device: torch.device) -> Piece:
    """The sinks that the band does not hold: all rows over the first ``sinks`` keys."""
    distance = torch.arange(n, device=device)[:, None] + (m - n) - torch.arange(min(sinks, m), device=device)
    mask = (distance >= size) if causal else (distance.abs() >= size)
    return Piece(slice(0, n), slice(0, min(sinks, m)), mask=mask[None, None])


def cells(n: int, m: int, size: int, causal: bool, sinks: int) -> int:
    """How many scores the pieces hold: about n (size + block), twice that bidirectional, and n for each sink."""
    total = 0
    for piece in pieces(n, m, size, causal, sinks, torch.device("meta")):
        rows, cols = piece.rows.stop - piece.rows.start, piece.cols.stop - piece.cols.start
        total += rows * (cols if piece.block is None or piece.mask is None else piece.mask.shape[-1])
    return total
