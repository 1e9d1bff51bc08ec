"""What one rank computes by itself: which of its queries see which keys of another, and attention over these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.mechanism import accumulate_dtype, repeat_heads
from regard.kernels import dense
from regard.kernels.dense import Piece
from regard.parallel.plan import Plan, Range

Parts = list[tuple[int, int, Range]]
"""``(document, place in memory, tokens)``, as `Plan.pieces` gives them."""


def query_parts(queries: Plan, keys: Plan, rank: int) -> Parts:
    """A rank's queries by the tokens of the keys: aligned at the end of both, and in the same documents."""
    shift = keys.length - queries.length
    if queries is keys or (not shift and keys.borders == queries.borders):
        return queries.pieces(rank)
    found, place = [], 0
    for first, last in queries.shards[rank]:
        found += cut(keys, place, (first + shift, last + shift))
        place += last - first
    return found


def cut(keys: Plan, place: int, tokens: Range) -> Parts:
    """Tokens in one run of memory, cut where a document of the keys begins."""
    marks = [tokens[0], *(border for border in keys.borders if tokens[0] < border < tokens[1]), tokens[1]]
    spans = list(pairwise(marks))
    return [(keys.document(max(first, 0)), place + first - tokens[0], (first, last)) for first, last in spans]


def visible(queries: Parts, keys: Parts, causal: bool) -> list[Piece]:
    """What these queries see of these keys, as calls of the fused operator, none of which has a mask."""
    found: list[Piece] = []
    for document, row, span in queries:
        for other, col, seen in keys:
            if other == document:
                found += pair(row, span, col, seen) if causal else [whole(row, span, col, seen)]
    return found


def whole(row: int, span: Range, col: int, seen: Range) -> Piece:
    """All of the keys seen by all of the queries."""
    return Piece(slice(row, row + span[1] - span[0]), slice(col, col + seen[1] - seen[0]))


def pair(row: int, span: Range, col: int, seen: Range) -> Iterator[Piece]:
    """Queries over keys of one document, causally: those before all of the rows, then a square aligned at its start."""
    start = max(span[0], seen[0])
    if start >= span[1]:
        return
    own, before = (start, span[1]), min(seen[1], start)
    if before > seen[0]:
        yield whole(row + start - span[0], own, col, (seen[0], before))
    if seen[1] > start:
        square = whole(row + start - span[0], own, col + start - seen[0], (start, min(seen[1], span[1])))
        yield Piece(square.rows, square.cols, causal=True)


def moved(piece: Piece, columns: int) -> Piece:
    """The same of keys that stand so many columns further on."""
    return replace(piece, cols=slice(piece.cols.start + columns, piece.cols.stop + columns))


def attend(q: Tensor, k: Tensor, v: Tensor, parts: Sequence[Piece], scale: float) -> tuple[Tensor, Tensor]:
    """``(out, lse)`` of the pieces in the precision of sums, without gradients; zeros and −∞ where none are seen."""
    wide, e = accumulate_dtype(q.dtype), v.shape[-1]
    if not parts:
        return q.new_zeros(*q.shape[:3], e, dtype=wide), q.new_full(q.shape[:3], -torch.inf, dtype=wide)
    out, lse = dense.merged(*level(q, k, v), parts, scale)
    return out[..., :e].to(wide), lse.to(wide)


def gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, parts: Sequence[Piece], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of q, k and v, in the precision of sums, from these pieces of rows whose ``out`` and ``lse`` are over more.

    Shapes: those of q, k and v, the gradients of a kv head summed over its queries' heads.
    """
    d, e, heads, groups = q.shape[-1], v.shape[-1], q.shape[1], k.shape[1]
    finite = lse.masked_fill(lse == -torch.inf, 0)
    padded = [F.pad(x, (0, max(d - e, 0))).to(q.dtype) for x in (grad, out)]
    dq, dk, dv = dense.gradients(padded[0], *level(q, k, v), padded[1], finite, parts, scale)
    dk, dv = (x.unflatten(1, (groups, heads // groups)).sum(2) for x in (dk, dv))
    return dq[..., :d], dk[..., :d], dv[..., :e]


def level(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As the fused operator takes them: as many heads, as many channels."""
    wide = max(q.shape[-1], v.shape[-1])
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    q, k, v = (F.pad(x, (0, wide - x.shape[-1])) if x.shape[-1] < wide else x for x in (q, k, v))
    return q, k, v
