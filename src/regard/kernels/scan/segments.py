"""A memory of the squared error over segments of chunks: what is written to it, and what it answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isqrt
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.kernels.scan.online import Inputs, Spread, Weights, spread, through_gelu


@dataclass(frozen=True)
class Given:
    """What a memory reads; ``new``: the layers of the memory where ``fresh (b, chunks)``."""

    x: Inputs
    w: Weights
    new: tuple[Tensor, ...]
    fresh: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.x.tensors, *self.w.tensors, *self.new]

    def like(self, tensors: list[Tensor]) -> Given:
        """The same with other tensors in the place of `tensors`."""
        of_x, of_w = len(self.x.tensors), len(self.w.tensors)
        x, w = self.x.like(tensors[:of_x]), self.w.like(tensors[of_x : of_x + of_w])
        return replace(self, x=x, w=w, new=tuple(tensors[of_x + of_w :]))


def spans(count: int) -> list[slice]:
    """The segments of so many chunks."""
    return [slice(start, min(start + isqrt(count), count)) for start in range(0, count, isqrt(count))]


def chunks_first(x: Tensor) -> Tensor:
    """``(chunks, b · h, …)`` of ``x (b, h, chunks, …)``."""
    return x.flatten(0, 1).transpose(0, 1).contiguous()


def heads_first(parts: list[Tensor], batch: int) -> Tensor:
    """`chunks_first` undone, of chunks in several parts."""
    return torch.cat(parts).transpose(0, 1).unflatten(0, (batch, -1))


@dataclass
class Segment:
    """Some chunks; the axes are chunks, heads of all sequences, tokens, channels.

    Args:
        x, ways: of their tokens. gates, graph: what ``ways`` follow from, and these as they do where gates learn.
        fresh: ``(chunks, heads, 1, 1)``, where a chunk begins with the layers ``new``, each ``(heads, i, o)``.
    """

    x: Inputs
    ways: Spread
    gates: list[Tensor]
    graph: Spread
    fresh: Tensor | None
    new: list[Tensor]

    @classmethod
    def of(cls, given: Given, span: slice, learns: bool = False) -> Self:
        x, fresh = given.x.each(lambda t: chunks_first(t.detach()[:, :, span])), given.fresh
        if fresh is not None:
            fresh = fresh[:, span].T.repeat_interleave(given.x.q.shape[1], 1)[..., None, None]
        gates = [t.requires_grad_(learns) for t in (x.step, x.log_decay, x.log_momentum) if t is not None]
        with torch.set_grad_enabled(learns):
            graph = spread(x)
        ways = graph.like([t.detach() for t in graph.tensors])
        return cls(x, ways, gates, graph, fresh, [t.detach().flatten(0, 1) for t in given.new])

    def begins(self, chunk: int) -> Tensor | None:
        """``(heads, 1, 1)``: which heads of this chunk are fresh; None for none."""
        return self.fresh[chunk] if self.fresh is not None and bool(self.fresh[chunk].any()) else None

    @property
    def reading(self) -> list[Tensor]:
        """``(chunks, heads, C, 1)``: what a token reads of the sums before its chunk, and of the momentum if any."""
        return [x for x in (self.ways.sums, self.ways.momentum) if x is not None]

    @property
    def writing(self) -> list[Tensor]:
        """What its gradient leaves in the sums behind its chunk, and in the momentum."""
        return [x for x in (self.ways.last, self.ways.still) if x is not None]

    @property
    def passing(self) -> list[list[Tensor]]:
        """Of each chunk what stays of the sums, what they take of the momentum, and what stays of it."""
        ends = [x[:, :, -1:] for x in self.reading]
        return by_chunk([*ends, *([] if self.ways.left is None else [self.ways.left])])


def put(into: Tensor, left: Tensor, right: Tensor, factor: int = 1) -> None:
    """Adds the product of matrices, ``factor`` times."""
    torch.baddbmm(into, left, right, alpha=factor, out=into)  # PyTorch's FLOP counter misses baddbmm_


def by_chunk(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """All of each chunk."""
    return [list(x) for x in zip(*(x.unbind(0) for x in tensors), strict=True)]


@dataclass
class Memory:
    """The layers of a memory at the start of each chunk of a segment and at its end.

    Args:
        parts: the sums' layers, then the momentum's if there is one, each ``(chunks + 1, heads, i, o)``. at: for each
            chunk, of each part, the layers.
    """

    parts: list[list[Tensor]]
    at: list[list[list[Tensor]]]

    @classmethod
    def of(cls, given: Given, count: int) -> Self:
        """Of that many chunks, the first of which begins with what is given."""

        def room(x: Tensor) -> Tensor:
            places = x.new_empty(count + 1, x.shape[0] * x.shape[1], *x.shape[2:])
            places[0] = x.detach().flatten(0, 1)
            return places

        parts = [[room(x) for x in part] for part in (given.w.sums, given.w.momentum) if part]
        return cls(parts, [[[x[chunk] for x in part] for part in parts] for chunk in range(count + 1)])

    @property
    def begun(self) -> list[Tensor]:
        """The memory at the first chunk's start."""
        return [x.clone() for part in self.at[0] for x in part]

    def begin(self, begun: Iterable[Tensor]) -> None:
        """At the first chunk's start with this."""
        for place, x in zip([x for part in self.at[0] for x in part], begun, strict=True):
            place.copy_(x)

    def go_on(self, count: int) -> None:
        """Begin with what stands behind that many chunks."""
        self.begin([x for part in self.at[count] for x in part])

    def renew(self, part: Segment, chunk: int) -> None:
        """Begin a chunk with the new layers where it is fresh."""
        fresh = part.begins(chunk)
        if fresh is not None:
            for x, new in zip(self.at[chunk][0], part.new, strict=True):
                x.copy_(torch.where(fresh, new, x))
            for x in (x for moving in self.at[chunk][1:] for x in moving):
                x.masked_fill_(fresh, 0)

    def add(self, passed: list[Tensor], chunk: int, place: int, reads: list[Tensor], delta: Tensor) -> None:
        """One layer behind the chunk; ``reads``: x_t times what ``x_t δ_tᵀ`` leaves in the sums and the momentum."""
        old, new = ([part[place] for part in self.at[here]] for here in (chunk, chunk + 1))
        torch.mul(old[0], passed[0], out=new[0])
        if len(reads) > 1:
            new[0].addcmul_(old[1], passed[1])
            put(torch.mul(old[1], passed[2], out=new[1]), reads[1].mT, delta, -1)
        put(new[0], reads[0].mT, delta, -1)


def write(part: Segment, memory: Memory) -> tuple[list[Tensor], list[Tensor]]:
    """Chunk by chunk, from the gradients at each one's start to the memory behind it.

    Returns the products of the keys with the layers but the last, before GELU, and the losses' derivatives by what
    these give, behind GELU, and by what the last gives.
    """
    k, v = part.x.k, part.x.v
    products = [k.new_empty(*k.shape[:3], x.shape[-1]) for x in memory.parts[0][:-1]]
    slopes = [torch.empty_like(x) for x in (*products, v)]
    each = zip(
        by_chunk([k, v]), by_chunk([*products, v]), by_chunk(slopes), by_chunk(part.writing), part.passing, strict=True
    )
    for chunk, ((key, value), z, slope, gates, passed) in enumerate(each):
        memory.renew(part, chunk)
        layers, reads = memory.at[chunk][0], [key]
        for layer, room in zip(layers[:-1], z, strict=False):
            reads.append(F.gelu(torch.bmm(reads[-1], layer, out=room)))
        delta = torch.baddbmm(value, reads[-1], layers[-1], beta=-2, alpha=2, out=slope[-1])
        for place in reversed(range(len(layers))):
            if place < len(products):
                delta = through_gelu(torch.bmm(delta, layers[place + 1].mT, out=slope[place]), z[place])
            memory.add(passed, chunk, place, [reads[place] * gate for gate in gates], delta)
    return products, slopes


def factors(part: Segment, products: list[Tensor], slopes: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """``x_t`` and ``δ_t`` of each layer's gradients ``x_t δ_tᵀ``, from what `write` returns."""
    through = [through_gelu(slope, z) for slope, z in zip(slopes, products, strict=False)]
    return [part.x.k, *map(F.gelu, products)], [*through, slopes[-1]]


def read(part: Segment, memory: Memory, reads: list[Tensor], deltas: list[Tensor]) -> list[Tensor]:
    """The products of the queries with each layer of their own time, of which the last are the answers."""
    x, answers = part.x.q, []
    for place, (read, delta) in enumerate(zip(reads, deltas, strict=True)):
        x = F.gelu(answers[-1]) if answers else x
        y = ((x @ read.mT).mul_(part.ways.pairs).neg_() @ delta).flatten(0, 1)
        for gate, layers in zip(part.reading, memory.parts, strict=True):
            put(y, (x * gate).flatten(0, 1), layers[place][: len(x)].flatten(0, 1))
        answers.append(y.view(*x.shape[:3], -1))
    return answers


@dataclass
class Carried:
    """Derivatives by a memory, changed in place on the way from the last chunk to the first: each ``(heads, i, o)``.

    Args:
        parts: by the sums' layers, and the momentum's. new: by the layers with which fresh chunks begin.
    """

    parts: list[list[Tensor]]
    new: list[Tensor]

    @classmethod
    def of(cls, given: Given, grads: tuple[Tensor | None, ...]) -> Self:
        """Of what is behind the last chunk."""
        ends = [torch.zeros_like(x, memory_format=torch.contiguous_format).flatten(0, 1) for x in given.w.tensors]
        for end, grad in zip(ends, grads, strict=True):
            if grad is not None:
                end.copy_(grad.flatten(0, 1))
        count = len(given.w.sums)
        parts = [ends[:count], ends[count:]] if given.w.momentum else [ends]
        return cls(parts, [torch.zeros_like(x) for x in parts[0]] if given.new else [])

    @property
    def tensors(self) -> list[Tensor]:
        return [*(x for part in self.parts for x in part), *self.new]

    def renew(self, fresh: Tensor) -> None:
        """Before a chunk that begins with the new layers where it is ``fresh (heads, 1, 1)``."""
        for new, x in zip(self.new, self.parts[0], strict=True):
            new.addcmul_(x, fresh.to(x.dtype))
        for x in (x for part in self.parts for x in part):
            x.masked_fill_(fresh, 0)
