"""Memories of the squared error that learn while they read, with their derivatives written out."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from math import isqrt
from typing import Any, cast

import torch
from torch import Tensor

from regard.kernels.scan.backward import Backward, TokenBackward
from regard.kernels.scan.coarse import ChunkBackward, ChunkSteps
from regard.kernels.scan.online import Course, Inputs, Rule, Weights, chunked
from regard.kernels.scan.segments import (
    Carried,
    Given,
    Memory,
    Segment,
    TokenSteps,
    chunks_first,
    heads_first,
    spans,
    write,
)
from regard.kernels.scan.summed import Summed, late, summed, whole


def learned(
    rule: Rule, x: Inputs, w: Weights, course: Course | None = None, new: Weights | None = None
) -> tuple[Tensor, Weights]:
    """`online.chunked`, or `summed.summed` of rules that are, by `Dual` where that serves."""
    if not serves(rule, x, course, new):
        return (summed if rule.summed else chunked)(rule, x, w, course, new)
    return late(rule, x, w, course, new, by_dual) if rule.summed else by_dual(rule, x, w, course, new)


def by_dual(rule: Rule, x: Inputs, w: Weights, course: Course | None, new: Weights | None) -> tuple[Tensor, Weights]:
    """`online.chunked`, or `summed.whole` of its chunks, by `Dual`."""
    fresh = None if course is None or new is None else course.fresh
    first = new.sums if new is not None and fresh is not None else ()
    given = Given(rule, x, replace(w, anchor=()), first, fresh)
    out, *after = cast(Any, Dual.apply)(given, torch.is_grad_enabled(), *given.tensors)
    ended = given.w.like(after)
    return out, replace(ended, anchor=ended.sums)


def serves(rule: Rule, x: Inputs, course: Course | None, new: Weights | None) -> bool:
    """Whether `Dual` computes it: the squared error, weights that are the sums, gates of each head, whole chunks.

    Chunks are whole where each begins and ends in this call, and where ``new`` says that no later call goes on. Where
    one chunk alone takes one step, it is to end here even so: its last slot may hold a token that does not end it.
    """
    known = type(rule) in (Rule, Summed) and not x.of_channels
    last = new is not None and (not rule.summed or x.q.shape[2] > 1)
    whole = course is None or last or bool((course.opening & course.closing).all())
    return known and x.q.numel() > 0 and x.v.numel() > 0 and whole


def by_rule(rule: Rule) -> tuple[type[Segment], type[Backward[Any]]]:
    """How its tokens step, and the derivatives of that."""
    return (ChunkSteps, ChunkBackward) if rule.summed else (TokenSteps, TokenBackward)


class Dual(torch.autograd.Function):
    """The memory segment by segment, each of about as many chunks as there are segments, and its derivatives.

    What is kept: the memory where a segment begins, and each token's products with the memory's layers. The backward
    pass forms a segment's memories again from what was written to them. The second derivative is autograd's.
    """

    @staticmethod
    def forward(ctx, given, keeps, *tensors):
        (batch, heads, count), outs, kept = given.x.q.shape[:3], [], []
        with torch.autocast(given.x.q.device.type, enabled=False):
            memory, steps = Memory.of(given, isqrt(count)), by_rule(given.rule)[0]
            held = keeps and steps.holds(given)
            for span in spans(count):
                part = steps.of(given, span)
                begun = memory.begun[: len(given.w.sums)] + memory.parts[1] if held else memory.begun
                products, slopes = write(part, memory)
                answers = part.read(memory, products, slopes)
                kept += [*begun, *products, *slopes, *answers[:-1]] if keeps else []
                outs.append(answers[-1])
                memory = memory.behind(len(outs[-1]), held)
        ctx.save_for_backward(*tensors, *kept)
        ctx.given = given.like([x.new_empty(0) for x in tensors])
        ctx.set_materialize_grads(False)
        return heads_first(outs, batch), *(x.unflatten(0, (batch, heads)) for x in memory.begun)

    @staticmethod
    def backward(ctx, *grads):
        count = len(ctx.given.tensors)
        given, kept = ctx.given.like(ctx.saved_tensors[:count]), ctx.saved_tensors[count:]
        with torch.autocast(given.x.q.device.type, enabled=False):
            found = by_autograd(given, grads) if torch.is_grad_enabled() else by_hand(given, kept, grads)
        return None, None, *found


def by_autograd(given: Given, grads: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The derivatives by `Given.tensors`, of which autograd finds further ones."""
    copies = [x.view_as(x) for x in given.tensors]  # the memory and what is fresh may be one tensor
    outs = zip(plain(given.like(copies)), grads, strict=True)
    ends, upstream = zip(*((out, grad) for out, grad in outs if grad is not None), strict=True)
    leaves = [x for x in copies if x.requires_grad]
    found = iter(torch.autograd.grad(ends, leaves, upstream, create_graph=True, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in copies]


def plain(given: Given) -> list[Tensor]:
    """What `Dual` computes, by operations that autograd knows."""
    way = whole if given.rule.summed else None
    out, after = chunked(given.rule, given.x, replace(given.w, anchor=given.w.sums), *given.course, way)
    return [out, *after.sums, *after.momentum]


def by_hand(given: Given, kept: tuple[Tensor, ...], grads: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The derivatives by `Given.tensors`, segment by segment from the last."""
    (batch, heads, count), layers = given.x.q.shape[:3], len(given.w.sums)
    memory, carried = Memory.of(given, isqrt(count)), Carried.of(given, grads[1:])
    grad = torch.zeros_like(given.x.v) if grads[0] is None else grads[0]
    steps, way = by_rule(given.rule)
    held = steps.holds(given)
    sizes = len(given.w.tensors), layers - 1, layers, layers - 1
    parts: list[list[Tensor]] = []
    for number, span in reversed(list(enumerate(spans(count)))):
        some = iter(kept[number * sum(sizes) : (number + 1) * sum(sizes)])
        begun, *found = (list(islice(some, size)) for size in sizes)
        memory = memory.holding(begun[layers:]) if held else memory
        memory.begin(begun[:layers] if held else begun)
        part, ups = steps.of(given, span, learns=True), chunks_first(grad[:, :, span])
        parts.insert(0, way(part, memory, carried, *found).run(ups))
    of_x = [heads_first(list(x), batch) for x in zip(*parts, strict=True)]
    return [*of_x, *(x.unflatten(0, (batch, heads)) for x in carried.tensors)]
