"""Memories of the squared error that learn while they read, with their derivatives written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import isqrt
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.kernels.scan.online import Course, Inputs, Rule, Weights, chunked, through_gelu
from regard.kernels.scan.segments import (
    Carried,
    Given,
    Memory,
    Segment,
    by_chunk,
    chunks_first,
    factors,
    heads_first,
    put,
    read,
    spans,
    write,
)
from regard.kernels.scan.summed import summed

DENSITY = 0.3989422804014327
"""Of the normal distribution at 0."""


def learned(
    rule: Rule, x: Inputs, w: Weights, course: Course | None = None, new: Weights | None = None
) -> tuple[Tensor, Weights]:
    """`online.chunked`, by `Dual` where that serves; `summed.summed` of rules that are."""
    if rule.summed:
        return summed(rule, x, w, course, new)
    if not serves(rule, x, course, new):
        return chunked(rule, x, w, course, new)
    fresh = None if course is None or new is None else course.fresh
    given = Given(x, replace(w, anchor=()), new.sums if new is not None and fresh is not None else (), fresh)
    out, *after = cast(Any, Dual.apply)(given, torch.is_grad_enabled(), *given.tensors)
    ended = given.w.like(after)
    return out, replace(ended, anchor=ended.sums)


def serves(rule: Rule, x: Inputs, course: Course | None, new: Weights | None) -> bool:
    """Whether `Dual` computes it: the squared error, weights that are the sums, gates of each head, whole chunks.

    Chunks are whole where each begins and ends in this call, and where ``new`` says that no later call goes on.
    """
    whole = course is None or new is not None or bool((course.opening & course.closing).all())
    return type(rule) is Rule and not x.of_channels and x.q.numel() > 0 and x.v.numel() > 0 and whole


class Dual(torch.autograd.Function):
    """The memory segment by segment, each of about as many chunks as there are segments, and its derivatives.

    What is kept: the memory where a segment begins, and each token's products with the memory's layers. The backward
    pass forms a segment's memories again from what was written to them. The second derivative is autograd's.
    """

    @staticmethod
    def forward(ctx, given, keeps, *tensors):
        (batch, heads, count), outs, kept = given.x.q.shape[:3], [], []
        with torch.autocast(given.x.q.device.type, enabled=False):
            memory = Memory.of(given, isqrt(count))
            for span in spans(count):
                part = Segment.of(given, span)
                begun = memory.begun
                products, slopes = write(part, memory)
                answers = read(part, memory, *factors(part, products, slopes))
                kept += [*begun, *products, *slopes, *answers[:-1]] if keeps else []
                outs.append(answers[-1])
                memory.go_on(len(outs[-1]))
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
    x, w, new, course = given.x, replace(given.w, anchor=given.w.sums), None, None
    if given.fresh is not None:
        every = torch.ones_like(given.fresh)
        course = Course(every, every, every, given.fresh)
        new = Weights(given.new, tuple(torch.zeros_like(x) for x in w.momentum), given.new)
    out, after = chunked(Rule(), x, w, course, new)
    return [out, *after.sums, *after.momentum]


def by_hand(given: Given, kept: tuple[Tensor, ...], grads: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The derivatives by `Given.tensors`, segment by segment from the last."""
    (batch, heads, count), layers = given.x.q.shape[:3], len(given.w.sums)
    memory, carried = Memory.of(given, isqrt(count)), Carried.of(given, grads[1:])
    grad = torch.zeros_like(given.x.v) if grads[0] is None else grads[0]
    sizes = len(given.w.tensors), layers - 1, layers, layers - 1
    parts: list[list[Tensor]] = []
    for number, span in reversed(list(enumerate(spans(count)))):
        some = iter(kept[number * sum(sizes) : (number + 1) * sum(sizes)])
        begun, *found = (list(islice(some, size)) for size in sizes)
        memory.begin(begun)
        back = Backward(Segment.of(given, span, learns=True), memory, carried, *found)
        parts.insert(0, back.run(chunks_first(grad[:, :, span])))
    of_x = [heads_first(list(x), batch) for x in zip(*parts, strict=True)]
    return [*of_x, *(x.unflatten(0, (batch, heads)) for x in carried.tensors)]


class Backward:
    """The derivatives of one segment.

    Args:
        part, memory: the segment, and the memory at its start. carried: the derivatives by the memory at its end, which
            become those at its start. products, slopes, answers: as `write` and `read` return them.
    """

    def __init__(
        self,
        part: Segment,
        memory: Memory,
        carried: Carried,
        products: list[Tensor],
        slopes: list[Tensor],
        answers: list[Tensor],
    ) -> None:
        self.part, self.memory, self.carried, self.answers = part, memory, carried, answers
        self.tangents = [through_gelu(torch.ones_like(z), z) for z in products]
        self.reads = [part.x.k, *map(F.gelu, products)]
        self.deltas = [*(x * slope for x, slope in zip(self.tangents, slopes, strict=False)), slopes[-1]]
        self.written = [[x * gate for x in self.reads] for gate in part.writing]
        squares = [z * z for z in products]
        bends = [(-0.5 * square).exp_().mul_(square.sub_(2)).mul_(-DENSITY) for square in squares]
        self.curves = [bend.mul_(slope) for bend, slope in zip(bends, slopes, strict=False)]
        self.by_ways = part.ways.like([torch.zeros_like(x) for x in part.ways.tensors])

    def run(self, up: Tensor) -> list[Tensor]:
        """The derivatives by the tokens, in the order of `Inputs.tensors`, from ``up``, those by their answers."""
        part, ways = self.part, self.by_ways
        self.form_again()
        by_q, by_v = self.through_answers(up), torch.empty_like(part.x.v)
        backs = [[torch.empty_like(x) for x in self.reads] for _ in self.written]
        dots = up.new_empty(len(up), len(self.reads), 3, up.shape[1])
        for chunk, at in reversed(list(enumerate(self.chunks(backs, dots)))):
            at.end(self.carried)
            by_v[chunk] = at.gradients(self.carried)
            fresh = part.begins(chunk)
            if fresh is not None:
                self.carried.renew(fresh)
        stays, takes, left = dots.sum(1)[..., None, None].unbind(1)
        ways.sums[:, :, -1:] += stays
        if ways.momentum is not None and ways.left is not None:
            ways.momentum[:, :, -1:] += takes
            ways.left.copy_(left)
        for gate, of in zip((ways.last, ways.still), backs, strict=False):
            for reads, back in zip(self.reads, of, strict=True):
                cast(Tensor, gate).sub_(back.mul_(reads).sum(-1, keepdim=True))
        by_gates = torch.autograd.grad(part.graph.tensors, part.gates, ways.tensors)
        return [
            by_q,
            self.by_reads[0],
            by_v,
            *by_gates,
            *([] if part.x.real is None else [torch.zeros_like(part.x.real)]),
        ]

    def form_again(self) -> None:
        """The memory at the start of each chunk, from what was written."""
        each = zip(by_chunk(self.deltas), self.part.passing, *map(by_chunk, self.written), strict=True)
        for chunk, (deltas, passed, *reads) in enumerate(each):
            self.memory.renew(self.part, chunk)
            for place in range(len(deltas) if chunk < len(self.deltas[0]) - 1 else 0):
                self.memory.add(passed, chunk, place, [x[place] for x in reads], deltas[place])

    def through_answers(self, up: Tensor) -> Tensor:
        """The derivatives by the queries of all chunks, and what the answers add to those by factors and gates."""
        part, ways, count = self.part, self.by_ways, len(up)
        pairs, gates = -part.ways.pairs, part.reading
        by_gates = [x for x in (ways.sums, ways.momentum) if x is not None]
        self.asked: list[list[Tensor]] = [[] for _ in gates]
        self.ups: list[Tensor] = []
        self.by_reads: list[Tensor] = []
        self.by_deltas: list[Tensor] = []
        for place, x in reversed(list(enumerate([part.x.q, *map(F.gelu, self.answers)]))):
            reads, deltas = self.reads[place], self.deltas[place]
            along, scores = up @ deltas.mT, x @ reads.mT
            ways.pairs.addcmul_(along, scores, value=-1)
            along, scores = along.mul_(pairs), scores.mul_(pairs)
            self.ups.insert(0, up)
            self.by_reads.insert(0, along.mT @ x)
            self.by_deltas.insert(0, scores.mT @ up)
            down = along @ reads
            for gate, layers, by_gate, asked in zip(gates, self.memory.parts, by_gates, self.asked, strict=True):
                back = up @ layers[place][:count].mT
                down.addcmul_(back, gate)
                by_gate += back.mul_(x).sum(-1, keepdim=True)
                asked.insert(0, x * gate)
            up = through_gelu(down, self.answers[place - 1]) if place else down
        return up

    def chunks(self, backs: list[list[Tensor]], dots: Tensor) -> Iterator[At]:
        """Each of the chunks."""
        part = self.part
        of_layers = (self.reads, self.deltas, self.by_reads, self.by_deltas, self.ups, self.tangents, self.curves)
        plain = zip(*(by_chunk(x) if x else [[]] * len(dots) for x in of_layers), strict=True)
        of_parts = (zip(*map(by_chunk, x), strict=True) for x in (self.written, self.asked, backs))
        each = zip(plain, zip(*of_parts, strict=True), by_chunk(part.writing), part.passing, dots, strict=True)
        for chunk, (layers, parts, gates, passed, dot) in enumerate(each):
            yield At(*cast(Any, (*layers, *parts, gates, passed, dot, self.memory.at[chunk])))


@dataclass
class At:
    """One chunk of `Backward`.

    Args:
        reads, deltas, by_reads, by_deltas, ups, tangents, curves: of each layer. written, asked, backs: of each part of
            the memory, each layer. gates: of each part. passed: `Segment.passing`, by which ``dot (layers, 3, heads)``
            are the derivatives. memory: at the chunk's start.
    """

    reads: list[Tensor]
    deltas: list[Tensor]
    by_reads: list[Tensor]
    by_deltas: list[Tensor]
    ups: list[Tensor]
    tangents: list[Tensor]
    curves: list[Tensor]
    written: list[list[Tensor]]
    asked: list[list[Tensor]]
    backs: list[list[Tensor]]
    gates: list[Tensor]
    passed: list[Tensor]
    dot: Tensor
    memory: list[list[Tensor]]

    def end(self, carried: Carried) -> None:
        """From the derivatives by the memory behind the chunk to those by the one before it, as `Memory.add` has it."""
        for place, (delta, up, dot) in enumerate(zip(self.deltas, self.ups, self.dot, strict=True)):
            grads, old = ([x[place] for x in parts] for parts in (carried.parts, self.memory))
            each = zip(grads, self.backs, self.written, self.gates, strict=True)
            for grad, backs, written, gate in each:
                back = torch.bmm(delta, grad.mT, out=backs[place])
                self.by_reads[place].addcmul_(back, gate, value=-1)
                put(self.by_deltas[place], written[place], grad, -1)
            torch.sum(grads[0] * old[0], (1, 2), out=dot[0])
            if len(grads) > 1:
                torch.sum(grads[0] * old[1], (1, 2), out=dot[1])
                torch.sum(grads[1] * old[1], (1, 2), out=dot[2])
                grads[1].mul_(self.passed[2]).addcmul_(grads[0], self.passed[1])
                put(grads[1], self.asked[1][place].mT, up)
            put(grads[0].mul_(self.passed[0]), self.asked[0][place].mT, up)

    def gradients(self, carried: Carried) -> Tensor:
        """From the derivatives by the gradients' factors to those by keys and values; returns the latter."""
        layers, grads, by_products = self.memory[0], carried.parts[0], []
        for place, (tangent, curve) in enumerate(zip(self.tangents, self.curves, strict=True)):
            through = self.by_deltas[place] * tangent
            by_products.append(self.by_deltas[place] * curve)
            put(self.by_deltas[place + 1], through, layers[place + 1])
            put(grads[place + 1], through.mT, self.deltas[place + 1])
        by_products.append(2 * self.by_deltas[-1])
        for place in reversed(range(len(layers))):
            put(self.by_reads[place], by_products[place], layers[place].mT)
            put(grads[place], self.reads[place].mT, by_products[place])
            if place:
                by_products[place - 1].addcmul_(self.by_reads[place], self.tangents[place - 1])
        return -by_products[-1]
