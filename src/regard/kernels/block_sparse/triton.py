"""Softmax attention over lists of blocks, as Triton programs: forward and backward."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from regard.core.mechanism import accumulate_dtype
from regard.core.reduction import Partial
from regard.kernels.block_sparse.lists import Lists
from regard.kernels.device import power, precision
from regard.kernels.tiled import row_delta

LOG2E = tl.constexpr(math.log2(math.e))
LIGHT = 128
"""Bytes of a query up to which the keys of two blocks to come are fetched beside those in hand."""


@triton.jit
def scores_of(
    qt, kt, place, kj, tile, masks, scale,
    R: tl.constexpr, C: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of a block in units of log 2, −∞ where a key is not seen."""
    scores = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * (scale * LOG2E)
    scores = tl.where((kj >= 0)[None, :], scores, float("-inf"))
    if CAUSAL:
        scores = tl.where(kj[None, :] <= place[:, None], scores, float("-inf"))
    if tile >= 0:
        at = tile.to(tl.int64) * R * C + tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
        scores = tl.where(tl.load(masks + at) != 0, scores, float("-inf"))
    return scores


@triton.jit
def places_of(here, base, qi, CAUSAL: tl.constexpr):
    """Where queries stand, if that is what hides keys from them."""
    place = qi
    if CAUSAL:
        place = tl.load(here + base + qi, mask=qi >= 0, other=-1).to(tl.int64)
    return place


@triton.jit
def tokens_of(x, base, index, size: tl.constexpr, PADDED: tl.constexpr):
    """``(tokens, PADDED)`` of ``x``, zeros where the index is −1 or the axis has ended."""
    axis = tl.arange(0, PADDED)
    real = (index >= 0)[:, None] & (axis < size)[None, :]
    return tl.load(x + (base + index)[:, None] * size + axis[None, :], mask=real, other=0.0)


@triton.jit
def put(x, base, index, value, size: tl.constexpr, PADDED: tl.constexpr):
    """`tokens_of` the other way around."""
    axis = tl.arange(0, PADDED)
    real = (index >= 0)[:, None] & (axis < size)[None, :]
    tl.store(x + (base + index)[:, None] * size + axis[None, :], value.to(x.dtype.element_ty), mask=real)


@triton.jit
def forward_kernel(
    q, k, v, out, lse, rows, cols, offsets, columns, tiles, masks, here, scale, n, m, blocks,
    H: tl.constexpr, G: tl.constexpr, MAPS: tl.constexpr, d: tl.constexpr, e: tl.constexpr, D: tl.constexpr,
    E: tl.constexpr, R: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head: its keys block by block, by the online softmax."""
    block, which = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head = which % H
    group = which // H * G + head // (H // G)
    row = which % MAPS * blocks + block
    qi = tl.load(rows + block * R + tl.arange(0, R)).to(tl.int64)
    qt, place = tokens_of(q, which * n, qi, d, D), places_of(here, which % MAPS * n, qi, CAUSAL)
    top = tl.full((R,), float("-inf"), ACC)
    total = tl.zeros((R,), ACC)
    sums = tl.zeros((R, E), ACC)
    for at in range(tl.load(offsets + row), tl.load(offsets + row + 1)):
        kj = tl.load(cols + tl.load(columns + at) * C + tl.arange(0, C)).to(tl.int64)
        kt = tokens_of(k, group * m, kj, d, D)
        scores = scores_of(qt, kt, place, kj, tl.load(tiles + at), masks, scale, R, C, CAUSAL, PRECISION).to(ACC)
        new = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(new == float("-inf"), 0.0, new)
        weights = tl.exp2(scores - base[:, None])
        kept = tl.exp2(top - base)
        vt = tokens_of(v, group * m, kj, e, E)
        sums = sums * kept[:, None] + tl.dot(weights.to(vt.dtype), vt, input_precision=PRECISION)
        total = total * kept + tl.sum(weights, 1)
        top = new
    seen = total > 0
    put(out, which * n, qi, sums / tl.where(seen, total, 1.0)[:, None], e, E)
    summed = tl.where(seen, (top + tl.log2(tl.where(seen, total, 1.0))) / LOG2E, float("-inf"))
    tl.store(lse + which * n + qi, summed, mask=qi >= 0)


@triton.jit
def slopes_of(scores, lset, got, vt, delta, scale, PRECISION: tl.constexpr):
    """``(weights, gradients of the scores)`` of a block."""
    weights = tl.exp2(scores - (lset * LOG2E)[:, None])
    upstream = tl.dot(got, tl.trans(vt), input_precision=PRECISION)
    return weights, weights * (upstream - delta[:, None]) * scale


@triton.jit
def queries_kernel(
    q, k, v, grad, lse, deltas, dq, rows, cols, offsets, columns, tiles, masks, here, scale, n, m, blocks,
    H: tl.constexpr, G: tl.constexpr, MAPS: tl.constexpr, d: tl.constexpr, e: tl.constexpr, D: tl.constexpr,
    E: tl.constexpr, R: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of one block of queries."""
    block, which = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head = which % H
    group = which // H * G + head // (H // G)
    row = which % MAPS * blocks + block
    qi = tl.load(rows + block * R + tl.arange(0, R)).to(tl.int64)
    qt, got = tokens_of(q, which * n, qi, d, D), tokens_of(grad, which * n, qi, e, E)
    lset = tl.load(lse + which * n + qi, mask=qi >= 0, other=0.0)
    delta = tl.load(deltas + which * n + qi, mask=qi >= 0, other=0.0)
    place = places_of(here, which % MAPS * n, qi, CAUSAL)
    sums = tl.zeros((R, D), ACC)
    for at in range(tl.load(offsets + row), tl.load(offsets + row + 1)):
        kj = tl.load(cols + tl.load(columns + at) * C + tl.arange(0, C)).to(tl.int64)
        kt, vt = tokens_of(k, group * m, kj, d, D), tokens_of(v, group * m, kj, e, E)
        scores = scores_of(qt, kt, place, kj, tl.load(tiles + at), masks, scale, R, C, CAUSAL, PRECISION).to(ACC)
        _, slopes = slopes_of(scores, lset, got, vt, delta, scale, PRECISION)
        sums += tl.dot(slopes.to(kt.dtype), kt, input_precision=PRECISION)
    put(dq, which * n, qi, sums, d, D)


@triton.jit
def keys_kernel(
    q, k, v, grad, lse, deltas, dk, dv, rows, cols, offsets, owners, tiles, masks, here, scale, n, m, blocks,
    H: tl.constexpr, G: tl.constexpr, MAPS: tl.constexpr, d: tl.constexpr, e: tl.constexpr, D: tl.constexpr,
    E: tl.constexpr, R: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of one block of keys and values, over all queries of all heads of its group."""
    block, group = tl.program_id(0), tl.program_id(1).to(tl.int64)
    kj = tl.load(cols + block * C + tl.arange(0, C)).to(tl.int64)
    kt, vt = tokens_of(k, group * m, kj, d, D), tokens_of(v, group * m, kj, e, E)
    key_sums, value_sums = tl.zeros((C, D), ACC), tl.zeros((C, E), ACC)
    for member in range(H // G):
        head = group % G * (H // G) + member
        which = group // G * H + head
        row = which % MAPS * blocks + block
        for at in range(tl.load(offsets + row), tl.load(offsets + row + 1)):
            qi = tl.load(rows + tl.load(owners + at) * R + tl.arange(0, R)).to(tl.int64)
            qt, got = tokens_of(q, which * n, qi, d, D), tokens_of(grad, which * n, qi, e, E)
            place = places_of(here, which % MAPS * n, qi, CAUSAL)
            lset = tl.load(lse + which * n + qi, mask=qi >= 0, other=0.0)
            delta = tl.load(deltas + which * n + qi, mask=qi >= 0, other=0.0)
            scores = scores_of(qt, kt, place, kj, tl.load(tiles + at), masks, scale, R, C, CAUSAL, PRECISION).to(ACC)
            weights, slopes = slopes_of(scores, lset, got, vt, delta, scale, PRECISION)
            value_sums += tl.dot(tl.trans(weights.to(got.dtype)), got, input_precision=PRECISION)
            key_sums += tl.dot(tl.trans(slopes.to(qt.dtype)), qt, input_precision=PRECISION)
    put(dk, group * m, kj, key_sums, d, D)
    put(dv, group * m, kj, value_sums, e, E)


def over(q: Tensor, k: Tensor, v: Tensor, lists: Lists, scale: float | None = None) -> Partial:
    """Softmax attention of each block of queries to the blocks of keys that its list names, masked as it says.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> out ``(b, h, n, e)``, lse ``(b, h, n)``; both
    differentiable. Cost: ``4 cells max(d, e)`` FLOPs a head; bytes: a block's keys and values are read once for each
    block of queries that lists them.

    Paper: the online softmax and its recomputing backward pass: Dao, arXiv 2307.08691.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    out, lse = cast(Any, Over.apply)(q.contiguous(), k.contiguous(), v.contiguous(), lists, factor)
    return Partial(out, lse)


class Over(torch.autograd.Function):
    """The backward pass forms every block's weights again, from the log-sum-exp."""

    @staticmethod
    def forward(ctx, q, k, v, lists, scale):
        wide = accumulate_dtype(q.dtype)
        out, lse = q.new_zeros(*q.shape[:3], v.shape[3]), q.new_full(q.shape[:3], -torch.inf, dtype=wide)
        if out.numel() and k.shape[2]:
            forward_kernel[len(lists.rows), q.shape[0] * q.shape[1]](
                *(q, k, v, out, lse, lists.rows, lists.cols, lists.offsets, lists.columns, lists.tiles, lists.masks),
                *(standing(lists), scale, q.shape[2], k.shape[2], len(lists.rows)),
                **sizes(q, k, v, lists, ahead=power(q.shape[3]) * q.element_size() <= LIGHT),
            )
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.lists, ctx.scale = lists, scale
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_lse):
        q, k, v, out, lse = ctx.saved_tensors
        lists: Lists = ctx.lists
        grad = torch.zeros_like(out) if grad is None else grad.contiguous()
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        if out.numel() and k.shape[2]:
            deltas = row_delta(grad.to(lse.dtype), out, grad_lse).contiguous()
            finite = lse.masked_fill(lse == -torch.inf, 0)
            given = (q, k, v, grad, finite, deltas)
            ends = (lists.masks, standing(lists), ctx.scale, q.shape[2], k.shape[2])
            queries_kernel[len(lists.rows), q.shape[0] * q.shape[1]](
                *(*given, dq, lists.rows, lists.cols, lists.offsets, lists.columns, lists.tiles),
                *(*ends, len(lists.rows)),
                **sizes(q, k, v, lists),
            )
            keys_kernel[len(lists.cols), k.shape[0] * k.shape[1]](
                *(*given, dk, dv, lists.rows, lists.cols, lists.owner_offsets, lists.owners, lists.owner_tiles),
                *(*ends, len(lists.cols)),
                **sizes(q, k, v, lists),
            )
        return dq, dk, dv, None, None


def sizes(q: Tensor, k: Tensor, v: Tensor, lists: Lists, ahead: bool = False) -> dict[str, Any]:
    """What the kernels are compiled for, and whether blocks to come are fetched ``ahead``."""
    d, e = q.shape[3], v.shape[3]
    return {
        **{"H": q.shape[1], "G": k.shape[1], "MAPS": lists.maps, "d": d, "e": e, "D": power(d), "E": power(e)},
        **{"R": lists.rows.shape[1], "C": lists.cols.shape[1], "PRECISION": precision()},
        **{"ACC": tl.float64 if q.dtype == torch.float64 else tl.float32, "num_warps": 4 if d <= 128 else 8},
        **{"CAUSAL": lists.here is not None, "num_stages": 3 if ahead else 1},
    }


def standing(lists: Lists) -> Tensor:
    """Positions of queries, or anything where nobody reads them."""
    return lists.offsets if lists.here is None else lists.here
