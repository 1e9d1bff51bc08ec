"""The state's way from chunk to chunk, as Triton programs: what of a scan is one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from regard.kernels.device import power, precision

if TYPE_CHECKING:
    from regard.kernels.scan.gated import Chunks

COLUMNS = 32
"""Columns of the state that one program carries; they do not know of each other."""


@triton.jit
def tile(x, row, rows: tl.constexpr, cols: tl.constexpr, start, R: tl.constexpr, C: tl.constexpr):
    """``(R, C)`` of the matrix ``row`` of ``x (…, rows, cols)`` from column ``start``, zeros beyond its ends."""
    r, c = tl.arange(0, R)[:, None], start + tl.arange(0, C)[None, :]
    return tl.load(x + row * rows * cols + r * cols + c, mask=(r < rows) & (c < cols), other=0.0)


@triton.jit
def put(x, row, value, rows: tl.constexpr, cols: tl.constexpr, start, R: tl.constexpr, C: tl.constexpr):
    """`tile` the other way around."""
    r, c = tl.arange(0, R)[:, None], start + tl.arange(0, C)[None, :]
    tl.store(x + row * rows * cols + r * cols + c, value, mask=(r < rows) & (c < cols))


@triton.jit
def forward_kernel(
    within, reading, writing, values, keys, kept, base, added, states, out, chunks,
    T: tl.constexpr, D: tl.constexpr, E: tl.constexpr, TP: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    KEYS: tl.constexpr, KEPT: tl.constexpr, MORE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Some columns of one head's state over all chunks; the state before each, and the last one, are written down."""
    which, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * EP
    state = tile(states, which * (chunks + 1), D, E, start, DP, EP).to(ACC)
    for c in range(chunks):
        at = which * chunks + c
        new = tile(values, at, T, E, start, TP, EP)
        if KEYS:
            new += tl.dot(tile(keys, at, T, D, 0, TP, DP), state, input_precision=PRECISION)
        read = tl.dot(tile(within, at, T, T, 0, TP, TP), new, input_precision=PRECISION)
        read += tl.dot(tile(reading, at, T, D, 0, TP, DP), state, input_precision=PRECISION)
        if KEPT:
            axis = tl.arange(0, DP)
            state *= tl.load(kept + at * D + axis, mask=axis < D, other=0.0)[:, None]
        state += tl.dot(tl.trans(tile(writing, at, T, D, 0, TP, DP)), new, input_precision=PRECISION)
        if MORE:
            read += tile(base, at, T, E, start, TP, EP)
            state += tile(added, at, D, E, start, DP, EP)
        put(out, at, read, T, E, start, TP, EP)
        put(states, which * (chunks + 1) + c + 1, state, D, E, start, DP, EP)


@triton.jit
def backward_kernel(
    within, reading, writing, keys, kept, grad, slopes, news, chunks,
    T: tl.constexpr, D: tl.constexpr, E: tl.constexpr, TP: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
    KEYS: tl.constexpr, KEPT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same backwards: the gradient of the state before each chunk, and of what each token writes."""
    which, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * EP
    slope = tile(slopes, which * (chunks + 1) + chunks, D, E, start, DP, EP).to(ACC)
    for back in range(chunks):
        c = chunks - 1 - back
        at = which * chunks + c
        got = tile(grad, at, T, E, start, TP, EP)
        new = tl.dot(tl.trans(tile(within, at, T, T, 0, TP, TP)), got, input_precision=PRECISION)
        new += tl.dot(tile(writing, at, T, D, 0, TP, DP), slope, input_precision=PRECISION)
        if KEPT:
            axis = tl.arange(0, DP)
            slope *= tl.load(kept + at * D + axis, mask=axis < D, other=0.0)[:, None]
        slope += tl.dot(tl.trans(tile(reading, at, T, D, 0, TP, DP)), got, input_precision=PRECISION)
        if KEYS:
            slope += tl.dot(tl.trans(tile(keys, at, T, D, 0, TP, DP)), new, input_precision=PRECISION)
        put(news, at, new, T, E, start, TP, EP)
        put(slopes, which * (chunks + 1) + c, slope, D, E, start, DP, EP)


def chunk_recurrence(x: Chunks, state: Tensor) -> tuple[Tensor, Tensor]:
    """`scan.gated.march` as one program for each head and some columns of its state.

    Cost: the sequential products; the gradients of all but the state and what is written are batched products after it.
    """
    kept = None if x.kept is None else x.kept.expand(*x.values.shape[:3], state.shape[2], 1)[..., 0]
    given = [x.within, x.reading, x.writing, x.values, x.keys, kept, state, x.base, x.added]
    return cast(Any, ChunkRecurrence.apply)(*(None if part is None else part.contiguous() for part in given))


class ChunkRecurrence(torch.autograd.Function):
    """Forward keeps the states between the chunks; backward marches once from the end."""

    @staticmethod
    def forward(ctx, within, reading, writing, values, keys, kept, state, base, added):
        chunks = values.shape[2]
        states = state.new_empty(*state.shape[:2], chunks + 1, *state.shape[2:])
        states[:, :, 0] = state
        out, blank = torch.empty_like(values), values
        forward_kernel[grid_of(values)](
            *(within, reading, writing, values, blank if keys is None else keys, blank if kept is None else kept),
            *(blank if base is None else base, blank if added is None else added, states, out, chunks),
            **sizes(values, state, KEYS=keys is not None, KEPT=kept is not None, MORE=base is not None),
        )
        ctx.save_for_backward(within, reading, writing, values, keys, kept, states)
        ctx.more = base is not None
        return out, states[:, :, -1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_state):
        within, reading, writing, values, keys, kept, states = ctx.saved_tensors
        chunks, blank, grad = values.shape[2], values, grad.contiguous()
        slopes, news = torch.empty_like(states), torch.empty_like(values)
        slopes[:, :, -1] = grad_state
        backward_kernel[grid_of(values)](
            *(within, reading, writing, blank if keys is None else keys, blank if kept is None else kept),
            *(grad, slopes, news, chunks),
            **sizes(values, states[:, :, 0], KEYS=keys is not None, KEPT=kept is not None),
        )
        before, after = states[:, :, :-1], slopes[:, :, 1:]
        written = values if keys is None else values + keys @ before
        return (
            *(grad @ written.mT, grad @ before.mT, written @ after.mT, news),
            *(None if keys is None else news @ before.mT, None if kept is None else (before * after).sum(-1)),
            *(slopes[:, :, 0], grad if ctx.more else None, after if ctx.more else None),
        )


def grid_of(values: Tensor) -> tuple[int, int]:
    """Heads of all sequences, and blocks of columns."""
    return values.shape[0] * values.shape[1], int(triton.cdiv(values.shape[4], COLUMNS))


def sizes(values: Tensor, state: Tensor, **given: bool) -> dict[str, Any]:
    """What the kernels are compiled for, among it which tensors are given."""
    tokens, d, e = values.shape[3], state.shape[2], state.shape[3]
    return {
        **{"T": tokens, "D": d, "E": e, "TP": power(tokens), "DP": power(d), "EP": COLUMNS},
        **{"ACC": tl.float64 if state.dtype == torch.float64 else tl.float32, "PRECISION": precision()},
        **{"num_warps": 4 if d <= 128 else 8, "num_stages": 3 if d <= 64 else 1, **given},
    }
