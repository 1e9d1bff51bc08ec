"""Softmax attention by PyTorch's fused operator, wherever that can do the job exactly.

On the CPU the operator also returns the log-sum-exp, and its backward pass is exact for a *part* of the keys if it is
given the output and the log-sum-exp over *all* of them. So attention over several sets of keys, whole or in bands, is
one autograd function over a list of pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.layout import Layout
from regard.core.mechanism import accumulate_dtype, repeat_heads
from regard.core.reduction import Partial
from regard.kernels import flash, packing, tiled
from regard.kernels.tiled import drain, row_delta, sink_gradient, split

MASKED_ROWS = 512  # queries whose mask is formed at a time
KEPT = 1 << 28  # pairs of all sequences whose masks the backward pass may keep on a GPU: 256 MiB
SMALL = 1 << 16  # pairs of a sequence up to which one call under a mask is faster than its documents


@dataclass(frozen=True)
class Piece:
    """Some queries over some keys, in one call of the fused operator.

    Args:
        rows, cols: which queries, which keys.
        causal: row a of the piece sees its keys up to a: aligned at the START, as the operator has it.
        mask: True = may be seen, broadcastable to ``(b, h, rows, cols)``; with ``block`` ``(1, 1, block, width)``.
        block: queries come in blocks of this size; block i sees the ``width`` keys that start ``i * block`` into
            ``cols``. The blocks' keys overlap, as a view, uncopied. None: every row over every column.
        alone: whether no other piece has its rows. batch: which sequences.
    """

    rows: slice
    cols: slice
    causal: bool = False
    mask: Tensor | None = None
    block: int | None = None
    alone: bool = False
    batch: slice = field(default_factory=lambda: slice(None))

    def queries(self, x: Tensor) -> Tensor:
        """The piece's part of a per-query tensor ``(b, h, n, …)``, as the operator takes it."""
        x = x[self.batch, :, self.rows]
        return x if self.block is None else x.unflatten(2, (-1, self.block)).flatten(0, 1)

    def keys(self, x: Tensor) -> Tensor:
        """The piece's part of a per-key tensor ``(b, h, m, d)``."""
        if self.block is None or self.mask is None:
            return x[self.batch, :, self.cols]
        return x.flatten(0, 1)[:, self.cols].unfold(1, self.mask.shape[-1], self.block).mT

    def restore(self, x: Tensor, heads: int) -> Tensor:
        """``queries`` undone: ``(b, h, rows, …)``."""
        return x if self.block is None else x.unflatten(0, (-1, heads)).flatten(2, 3)

    def add_keys(self, total: Tensor, part: Tensor) -> None:
        """Adds a gradient shaped like ``keys`` to ``total (b, h, m, d)``; overlapping blocks add up."""
        if self.block is None:
            total[self.batch, :, self.cols] += part
            return
        target, blocks = total.flatten(0, 1)[:, self.cols], part.shape[1]
        for slab in split(0, part.shape[2], self.block):
            width = slab.stop - slab.start
            view = target[:, slab.start :].unfold(1, width, self.block)[:, :blocks].mT
            view += part[:, :, slab]

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """The mask as the operator adds it to the scores."""
        return additive(self.mask, dtype)

    def sighted(self) -> Tensor | None:
        """Which rows see any key, broadcastable to the log-sum-exp; None if all do."""
        if self.mask is None:
            return None
        if not self.causal or self.mask.shape[2] != 1:
            return self.mask.any(-1)
        rows = torch.arange(self.rows.stop - self.rows.start, device=self.mask.device)
        return (self.mask.cumsum(-1) > 0)[:, :, 0].index_select(-1, rows.clamp(max=self.mask.shape[-1] - 1))


@dataclass(frozen=True)
class Raised(Piece):
    """A piece whose scores get a bias beside its mask; without gradients for it.

    Args:
        added: ``(b or 1, h or 1, rows, cols)``.
    """

    added: Tensor | None = None

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        assert self.added is not None
        added = self.added.to(dtype)
        return added if self.mask is None else added.masked_fill(~self.mask, -torch.inf)


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Zero where the mask is True, −∞ elsewhere."""
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def attend(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), scale: float | None = None, sink: Tensor | None = None
) -> Tensor:
    """Softmax attention, fused, without n × m memory: ``softmax(scale q kᵀ) v``.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; ``sink (h,)`` a logit
    without value. Cost: ``4 n m max(d, e)`` FLOPs a head as counted (causality saves half of them), O(n + m) memory.
    """
    if q.device.type == "cpu":
        return attend_lse(q, k, v, layout, scale, sink).out
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    kept = 0 if layout.plain or not learns else q.shape[0] * q.shape[2] * k.shape[2]
    if sink is None and layout.bias is None and k.shape[2] and kept <= KEPT:
        return by_operator(q, k, v, layout, scale)
    return tiled.attend(q, k, v, layout, dot(q, scale), tiled.Softmax(sink))


def by_operator(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float | None) -> Tensor:
    """`attend` by PyTorch's operator as GPUs have it: in one call where a layout is plain, else rows under their mask.

    Autograd keeps the masks, a byte for each pair of a sequence.
    """
    n, m, grouped = q.shape[2], k.shape[2], q.shape[1] != k.shape[1]
    if not n:
        return q @ repeat_heads(k, q.shape[1]).mT @ repeat_heads(v, q.shape[1])
    if layout.plain and (not layout.causal or n in (1, m)):
        causal = layout.causal and n > 1
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped)
    if n == 1 and layout.mask is None:  # a decoding step: the group's queries are the rows
        q = q.unflatten(1, (k.shape[1], -1)).squeeze(3)
    else:
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    outs = []
    for rows in split(0, n, MASKED_ROWS):
        seen = slice(0, tiled.visible(rows, n, m, layout.causal))
        some = q[:, :, rows] if n > 1 else q
        if not seen.stop:
            outs.append(some.new_zeros(*some.shape[:3], v.shape[3]))
            continue
        mask = layout.allowed(n, m, q.device, rows, seen)
        sighted = mask.any(-1, keepdim=True)
        found = F.scaled_dot_product_attention(some, k[:, :, seen], v[:, :, seen], mask | ~sighted, scale=scale)
        outs.append(found.masked_fill(~sighted, 0))
    out = torch.cat(outs, 2) if len(outs) != 1 else outs[0]
    return out if out.shape[2] == n else out.flatten(1, 2)[:, :, None]


def attend_lse(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), scale: float | None = None, sink: Tensor | None = None
) -> Partial:
    """``attend`` with the log-sum-exp of each row (sink included); both are differentiable."""
    learned = layout.bias is not None and layout.bias.requires_grad and torch.is_grad_enabled()
    if q.device.type != "cpu" or learned:
        return tiled.attend_lse(q, k, v, layout, dot(q, scale), tiled.Softmax(sink))
    wide = accumulate_dtype(q.dtype)
    if layout.bias is not None and q.dtype != wide:  # what is added keeps its precision
        part = attend_lse(q.to(wide), k.to(wide), v.to(wide), layout, scale, sink)
        return Partial(part.out.to(q.dtype), part.lse)
    n, m, heads = q.shape[2], k.shape[2], q.shape[1]
    alone = layout.segments is None and layout.mask is None and layout.bias is None
    if n == 1 and heads != k.shape[1] and alone and sink is None:
        folded = q.unflatten(1, (k.shape[1], -1)).squeeze(3)  # a decoding step: the group's queries are the rows
        part = over(folded, k, v, pieces(folded.shape[2], m, Layout(key_mask=layout.key_mask)), scale)
        return Partial(part.out.flatten(1, 2)[:, :, None], part.lse.flatten(1, 2)[:, :, None])
    return over(q, k, v, pieces(n, m, layout), scale, sink)


def dot(q: Tensor, scale: float | None) -> tiled.Dot:
    """The score that the fused operator computes."""
    return tiled.Dot(q.shape[-1] ** -0.5 if scale is None else scale)


def pieces(n: int, m: int, layout: Layout) -> list[Piece]:
    """A layout as pieces."""
    if layout.bias is not None:
        return list(raised_pieces(n, m, layout, layout.bias))
    if layout.segments is not None and n * m > SMALL:
        return list(packed_pieces(n, m, layout))
    given = layout.segments if layout.mask is None else layout.mask
    if given is not None:
        return list(masked_pieces(n, m, layout, slice(0, n), slice(0, m), given.device))
    mask = None if layout.key_mask is None else layout.key_mask[:, None, None]
    if layout.causal and n > 1:
        return causal_pieces(n, m, mask)
    return [Piece(slice(0, n), slice(0, m), mask=mask)] if m else []


def raised_pieces(n: int, m: int, layout: Layout, bias: Tensor) -> Iterator[Piece]:
    """All rows under a bias and the mask that the layout is, a part of the rows at a time."""
    for piece in masked_pieces(n, m, layout, slice(0, n), slice(0, m), bias.device):
        yield Raised(piece.rows, piece.cols, mask=piece.mask, alone=True, added=bias[:, :, piece.rows, piece.cols])


def masked_pieces(
    n: int,
    m: int,
    layout: Layout,
    rows: slice,
    cols: slice,
    device: torch.device,
    batch: slice = slice(None),
) -> Iterator[Piece]:
    """``rows`` over ``cols`` under the mask that the layout is, a part of the rows at a time."""
    for part in split(rows.start, rows.stop, MASKED_ROWS):
        seen = slice(cols.start, min(cols.stop, tiled.visible(part, n, m, layout.causal)))
        if seen.stop > seen.start:
            yield Piece(part, seen, mask=layout.allowed(n, m, device, part, seen), alone=True, batch=batch)


def packed_pieces(n: int, m: int, layout: Layout) -> Iterator[Piece]:
    """Each document of each sequence as a sequence of its own, short ones a few together under a mask."""
    assert layout.segments is not None
    for run in packing.runs(layout.segments):
        rows = slice(max(run.keys.start - (m - n), 0), run.keys.stop - (m - n))
        batch = slice(None) if len(layout.segments) == 1 else slice(run.sequence, run.sequence + 1)
        if rows.stop <= rows.start:
            continue
        if not run.alone or layout.mask is not None:
            yield from masked_pieces(n, m, layout.of(run.sequence), rows, run.keys, layout.segments.device, batch)
            continue
        keys = None if layout.key_mask is None else layout.key_mask[batch, run.keys]
        keys = None if keys is None or bool(keys.all()) else keys
        inner = pieces(rows.stop - rows.start, run.keys.stop - run.keys.start, Layout(layout.causal, keys))
        for piece in inner:
            yield replace(
                piece,
                rows=slice(piece.rows.start + rows.start, piece.rows.stop + rows.start),
                cols=slice(piece.cols.start + run.keys.start, piece.cols.stop + run.keys.start),
                alone=len(inner) == 1,
                batch=batch,
            )


def causal_pieces(n: int, m: int, mask: Tensor | None) -> list[Piece]:
    """Causality aligned at the end: all of the first m − n keys, then a square aligned at its start."""
    past, blind = max(m - n, 0), max(n - m, 0)
    square = Piece(slice(blind, n), slice(past, m), True, None if mask is None else mask[..., past:])
    full = Piece(slice(0, n), slice(0, past), False, None if mask is None else mask[..., :past])
    return ([full] if past else []) + ([square] if m > past else [])


def over(
    q: Tensor, k: Tensor, v: Tensor, parts: Sequence[Piece], scale: float | None = None, sink: Tensor | None = None
) -> Partial:
    """Softmax attention over disjoint pieces of A; what no piece covers is not seen."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    e, wide = v.shape[-1], max(q.shape[-1], v.shape[-1])
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    q, k, v = (F.pad(x, (0, wide - x.shape[-1])) if x.shape[-1] < wide else x for x in (q, k, v))
    parts = parts if q.shape[2] else []
    learned = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, sink) if x is not None)
    run = cast(Any, Pieces.apply if learned else computed)  # short sequences feel what the bookkeeping costs
    out, lse = run(q, k, v, sink, parts, scale)
    return Partial(out if e == wide else out[..., :e], lse)


class Pieces(torch.autograd.Function):
    """The pieces merged; each one's backward is the fused operator's, given the merged output and log-sum-exp."""

    @staticmethod
    def forward(ctx, q, k, v, sink, parts, scale):
        out, lse = computed(q, k, v, sink, parts, scale)
        ctx.save_for_backward(q, k, v, sink, out, lse)
        ctx.parts, ctx.scale = parts, scale
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_lse):
        q, k, v, sink, out, lse = ctx.saved_tensors
        grad = torch.zeros_like(out) if grad is None else grad
        sink_part = None if sink is None else sink_gradient(sink, lse, row_delta(grad.to(lse.dtype), out, grad_lse))
        dim, finite = q.shape[-1], lse.masked_fill(lse == -torch.inf, 0)
        if grad_lse is not None:
            q, k, v, out, grad = with_lse_column(q, k, v, out, grad, grad_lse)
        sums = gradients(grad, q, k, v, out, finite, ctx.parts, ctx.scale)
        return *(total[..., :dim].to(q.dtype) for total in sums), sink_part, None, None


def computed(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, parts: Sequence[Piece], scale: float
) -> tuple[Tensor, Tensor]:
    """``(out, lse)`` of the pieces and the sink, in the precision of q and in that of sums."""
    out, lse = merged(q, k, v, parts, scale)
    if sink is not None:
        out, lse = drain(out, lse, sink)
    return out.to(q.dtype), lse


def gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, parts: Sequence[Piece], scale: float
) -> list[Tensor]:
    """Those of q, k and v by ``grad`` of the output, from these pieces alone, in the precision of sums.

    ``out`` and ``lse``, which is finite, may be over more keys than these.
    """
    sums = [torch.zeros(x.shape, dtype=lse.dtype, device=x.device) for x in (q, k, v)]
    for piece in parts:
        found = fused_backward(
            *(piece.queries(grad), piece.queries(q), piece.keys(k), piece.keys(v), piece.queries(out)),
            *(piece.queries(lse), piece, scale),
        )
        sums[0][piece.batch, :, piece.rows] += piece.restore(found[0], q.shape[1])
        for total, part in zip(sums[1:], found[1:], strict=True):
            piece.add_keys(total, part)
    return sums


def merged(q: Tensor, k: Tensor, v: Tensor, parts: Sequence[Piece], scale: float) -> tuple[Tensor, Tensor]:
    """``(out, lse)`` over all pieces, summed in the precision of sums; the first one is free if it covers all rows."""
    heads, wide = q.shape[1], accumulate_dtype(q.dtype)
    everything = slice(None), slice(0, q.shape[2])
    first = parts[0] if parts and (parts[0].batch, parts[0].rows) == everything else None
    if first is None:
        out, lse = torch.zeros_like(q, dtype=wide), q.new_full(q.shape[:3], -torch.inf, dtype=wide)
    else:
        out, lse = (
            first.restore(x, heads) for x in fused(first.queries(q), first.keys(k), first.keys(v), first, scale)
        )
        out = out if len(parts) == 1 else out.to(wide)
    for piece in parts[0 if first is None else 1 :]:
        found, sums = fused(piece.queries(q), piece.keys(k), piece.keys(v), piece, scale)
        found, sums = piece.restore(found, heads).to(wide), piece.restore(sums, heads)
        place = piece.batch, slice(None), piece.rows
        if piece.alone:
            out[place], lse[place] = found, sums
            continue
        merge_into(out[place], lse[place], found, sums)
    return out, lse


def with_lse_column(q: Tensor, k: Tensor, v: Tensor, out: Tensor, grad: Tensor, grad_lse: Tensor) -> list[Tensor]:
    """A value of one, whose output the softmax does not count: its gradient is that of the log-sum-exp.

    ``ds_ij = p_ij (do_i · v_j + dlse_i - do_i · o_i)`` is the operator's own formula for ``v' = [v, 1]``,
    ``do' = [do, dlse]`` and ``o' = [o, 0]``.
    """
    columns = (0, 0, 1, 0, grad_lse[..., None].to(grad.dtype))
    return [
        torch.cat([x, x.new_full((*x.shape[:3], 1), column) if isinstance(column, int) else column], -1)
        for x, column in zip((q, k, v, out, grad), columns, strict=True)
    ]


def merge_into(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """`Partial.merge`, in place: one weighted mean of the two outputs."""
    share = torch.sigmoid(other_lse - lse).nan_to_num_(0)  # both -inf: neither has seen anything
    out.lerp_(other, share[..., None])
    lse.copy_(torch.logaddexp(lse, other_lse))


def fused(q: Tensor, k: Tensor, v: Tensor, piece: Piece, scale: float) -> tuple[Tensor, Tensor]:
    """``(out, lse)`` of one piece; rows that see nothing get zeros and -inf."""
    run = flash.attend if q.device.type == "cpu" else by_products
    out, lse = run(q, k, v, piece.causal, piece.bias(q.dtype), scale)
    sighted = piece.sighted()
    return out, lse if sighted is None else lse.masked_fill(~sighted, -torch.inf)


def fused_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, piece: Piece, scale: float):
    """Gradients of ``q, k, v`` from one piece, given the whole ``out`` and finite ``lse``."""
    run = flash.gradients if q.device.type == "cpu" else by_products_backward
    return run(grad, q, k, v, out, lse, piece.causal, piece.bias(q.dtype), scale)


def by_products(q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None, scale: float):
    """What the CPU's fused operator computes, on any device, by plain matrix products over the piece."""
    scores = scores_of(q, k, causal, bias, scale)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0)[..., None])
    return weights.to(v.dtype) @ v, lse


def by_products_backward(grad, q, k, v, out, lse, causal: bool, bias: Tensor | None, scale: float):
    """What the CPU's fused backward operator computes, likewise."""
    weights = torch.exp(scores_of(q, k, causal, bias, scale) - lse[..., None])
    upstream = (grad @ v.mT).to(weights.dtype)
    slopes = (weights * (upstream - row_delta(grad, out, None)[..., None]) * scale).to(q.dtype)
    return slopes @ k, slopes.mT @ q, weights.to(grad.dtype).mT @ grad


def scores_of(q: Tensor, k: Tensor, causal: bool, bias: Tensor | None, scale: float) -> Tensor:
    """Masked scores in the precision of sums."""
    wide = accumulate_dtype(q.dtype)
    scores = (q.to(wide) * scale) @ k.to(wide).mT
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores if bias is None else scores + bias
