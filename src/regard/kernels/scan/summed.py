"""Memories that learn while they read by one step for each chunk: the coarse form of `online`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from regard.kernels.scan.online import Course, Inputs, Rule, Weights, chunked, gradients, recall, unbound

Way = Callable[[Rule, Inputs, Weights, Course | None, Weights | None], tuple[Tensor, Weights]]


class Summed(Rule):
    """The squared error, one step for each chunk."""

    summed = True


def summed(
    rule: Rule, x: Inputs, w: Weights, course: Course | None = None, new: Weights | None = None
) -> tuple[Tensor, Weights]:
    """A memory that takes the sum of a chunk's gradients when the chunk ends.

        S_c = η_c S_{c−1} − Σ_t θ_t ∇ℓ_t(W_{c−1}),   W_c = (1 − α_c) W_{c−1} + S_c

    η_c and α_c are of the token that ends chunk c. A token is answered by the chunks that have ended with it or
    before. In the middle of a chunk the sums are ``W_{c−1} − Σ θ_t ∇ℓ_t`` of what was read, and the anchor W_{c−1}.

    Shapes and arguments: as of `online.chunked`, but without ``course`` the last chunk is whole or the memory behind it
    is not to be used. Only gates of each head.
    """
    if course is not None:
        return chunked(rule, x, w, course, new, window)
    return late(rule, x, w, None, new, partial(chunked, way=whole))


def late(
    rule: Rule, x: Inputs, w: Weights, course: Course | None, new: Weights | None, way: Way
) -> tuple[Tensor, Weights]:
    """`summed` of whole chunks, by a ``way`` in which each query is one of the token before, as of `whole`."""
    queries = x.q.flatten(2, 3)
    shifted = torch.cat([torch.zeros_like(queries[:, :, :1]), queries[:, :, :-1]], 2).view_as(x.q)
    out, w = way(rule, replace(x, q=shifted), w, course, new)
    last = recall(rule, w.anchor, queries[:, :, -1:])
    return torch.cat([out.flatten(2, 3)[:, :, 1:], last], 2).view_as(out), w


def whole(rule: Rule, x: Inputs, w: Weights, course: Course | None, new: Weights | None) -> tuple[Tensor, Weights]:
    """Some whole chunks, one after the other, whose queries read the memory before the chunk.

    The first query of a chunk that is fresh reads the memory that was there before.
    """
    outs = []
    for chunk, own in enumerate(unbound(x)):
        first, fresh = None, None if course is None or course.fresh is None else course.fresh[:, chunk]
        if fresh is not None and new is not None:
            first = recall(rule, w.anchor, own.q[:, :, :1])
            w = new.where(fresh, w)
        out, steps = recall(rule, w.anchor, own.q), taken(rule, w, own)
        if first is not None and fresh is not None:
            first = torch.where(fresh[:, None, None, None], first, out[:, :, :1])
            out = torch.cat([first, out[:, :, 1:]], 2)
        outs.append(out)
        w = ended(own, w, steps, torch.full_like(own.step[..., :1], own.step.shape[-1] - 1, dtype=torch.int64))
    return torch.stack(outs, 2), w


def window(rule: Rule, x: Inputs, w: Weights, course: Course | None, new: Weights | None) -> tuple[Tensor, Weights]:
    """Some chunks, one after the other."""
    outs = []
    for chunk, own in enumerate(unbound(x)):
        here = cast(Course, course).part(chunk, chunk + 1)
        if here.fresh is not None and new is not None:
            w = new.where(here.fresh[:, 0], w)
        out, w = part_of_chunk(rule, own, w, taken(rule, w, own), recall(rule, w.anchor, own.q), here)
        outs.append(out)
    return torch.stack(outs, 2), w


def taken(rule: Rule, w: Weights, x: Inputs) -> list[Tensor]:
    """What a chunk's tokens add to each layer."""
    return [read.mT @ (slope * -x.step[..., None]) for read, slope in gradients(rule, w.anchor, x)]


def ended(x: Inputs, w: Weights, steps: list[Tensor], last: Tensor) -> Weights:
    """The memory behind a chunk of whose tokens ``last (b, h, 1)`` is the last; ``steps``: of all of its tokens."""

    def gate(log: Tensor) -> Tensor:
        return log.gather(2, last).exp()[..., None]

    if x.log_momentum is not None:
        moved = gate(x.log_momentum)
        steps = [torch.addcmul(step, old, moved) for step, old in zip(steps, w.momentum, strict=True)]
    left = gate(x.log_decay)
    layers = tuple(torch.addcmul(step, old, left) for step, old in zip(steps, w.anchor, strict=True))
    return Weights(layers, tuple(steps) if w.momentum else (), layers)


def part_of_chunk(
    rule: Rule, x: Inputs, w: Weights, steps: list[Tensor], out: Tensor, course: Course
) -> tuple[Tensor, Weights]:
    """What a chunk comes to that may begin in an earlier call or go on in a later one."""
    closing, real = course.closing[:, 0], torch.ones_like(x.step) if x.real is None else x.real
    places = torch.arange(real.shape[-1], device=real.device)
    last = (real.bool() * places).amax(-1, keepdim=True)
    sums = tuple(old + step for old, step in zip(w.sums, steps, strict=True))
    whole = [now - anchor for now, anchor in zip(sums, w.anchor, strict=True)]
    after = ended(x, w, whole, last).where(closing, Weights(sums, w.momentum, w.anchor))
    at = last[..., None]
    answer = recall(rule, after.anchor, x.q.gather(2, at.expand(-1, -1, -1, x.q.shape[3])))
    closes = closing[:, None, None, None] & (places[:, None] == at)
    return torch.where(closes, answer, out), after


def summed_flops(n: int, chunk: int, sizes: list[tuple[int, int]]) -> int:
    """FLOPs of the matrix products over n tokens of one head; ``sizes (i, o)`` of the memory's layers."""
    slots = -(-n // chunk) * chunk
    each = sum(i * o * (3 + (place > 0)) for place, (i, o) in enumerate(sizes))
    return 2 * (slots * each + (n > 0) * sum(i * o for i, o in sizes))
