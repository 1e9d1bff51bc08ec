"""A memory of the squared error over segments of chunks: what is written to it, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isqrt
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.kernels.scan.online import Course, Inputs, Rule, Spread, Weights, spread, through_gelu


@dataclass(frozen=True)
class Given:
    """What a memory reads; ``new``: the layers of the memory where ``fresh (b, chunks)``."""

    rule: Rule
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

    @property
    def course(self) -> tuple[Course | None, Weights | None]:
        """That every chunk is whole, and the memory where one is fresh; None and None without."""
        if self.fresh is None:
            return None, None
        every, still = torch.ones_like(self.fresh), tuple(torch.zeros_like(x) for x in self.w.momentum)
        return Course(every, every, every, self.fresh), Weights(self.new, still, self.new)


def spans(count: int) -> list[slice]:
    """The segments of so many chunks."""
    return [slice(start, min(start + isqrt(count), count)) for start in range(0, count, isqrt(count))]


def chunks_first(x: Tensor) -> Tensor:
    """``(chunks, b · h, …)`` of ``x (b, h, chunks, …)``."""
    return x.flatten(0, 1).transpose(0, 1).contiguous()


def heads_first(parts: list[Tensor], batch: int) -> Tensor:
    """`chunks_first` undone, of chunks in several parts."""
    return torch.cat([x.transpose(0, 1) for x in parts], 1).unflatten(0, (batch, -1))


@dataclass
class Segment(ABC):
    """Some chunks; the axes are chunks, heads of all sequences, tokens, channels.

    A subclass says what a token's gradient, and the memory before its chunk, come to.

    Args:
        x: of their tokens. fresh: ``(chunks, heads, 1, 1)``, where a chunk begins with the layers ``new``, each
            ``(heads, i, o)``. learns: whether derivatives by the gates are wanted.
    """

    x: Inputs
    fresh: Tensor | None
    new: list[Tensor]
    learns: bool

    @classmethod
    def of(cls, given: Given, span: slice, learns: bool = False) -> Self:
        x, fresh = given.x.each(lambda t: chunks_first(t.detach()[:, :, span])), given.fresh
        if fresh is not None:
            fresh = fresh[:, span].T.repeat_interleave(given.x.q.shape[1], 1)[..., None, None]
        return cls(x, fresh, [t.detach().flatten(0, 1) for t in given.new], learns)

    def begins(self, chunk: int) -> Tensor | None:
        """``(heads, 1, 1)``: which heads of this chunk are fresh; None for none."""
        return self.fresh[chunk] if self.fresh is not None and bool(self.fresh[chunk].any()) else None

    def renew(self, memory: Memory, chunk: int) -> None:
        """Begin a chunk with the new layers where it is fresh."""
        fresh = self.begins(chunk)
        if fresh is not None:
            for x, new in zip(memory.at[chunk][0], self.new, strict=True):
                x.copy_(torch.where(fresh, new, x))
            for x in (x for moving in memory.at[chunk][1:] for x in moving):
                x.masked_fill_(fresh, 0)

    @staticmethod
    def holds(given: Given) -> bool:
        """Whether the momentum behind every chunk is kept for the backward pass, which need not form it again."""
        return False

    @property
    @abstractmethod
    def writing(self) -> list[Tensor]:
        """The gates of each token's gradient, ``(chunks, heads, C, 1)``."""

    @property
    @abstractmethod
    def passing(self) -> list[list[Tensor]]:
        """Of each chunk the gates of the memory before it, ``(heads, 1, 1)``."""

    @abstractmethod
    def lost(self, delta: Tensor, gates: list[Tensor]) -> Tensor:
        """The factor of the last layer's gradients from the derivative of ‖M(k) − v‖² by M(k)."""

    @abstractmethod
    def written(self, read: Tensor, gates: list[Tensor]) -> list[Tensor]:
        """For each part of the memory x_t times what ``x_t δ_tᵀ`` leaves in it behind the chunk."""

    @abstractmethod
    def add(
        self, memory: Memory, chunk: int, place: int, passed: list[Tensor], reads: list[Tensor], delta: Tensor
    ) -> None:
        """One layer behind the chunk; ``reads``: as `written`."""

    @abstractmethod
    def read(self, memory: Memory, products: list[Tensor], slopes: list[Tensor]) -> list[Tensor]:
        """The products of the queries with each layer, of which the last are the answers, from what `write` returns."""


@dataclass
class TokenSteps(Segment):
    """Every token takes its own step, and is answered by the memory behind it.

    ``ways`` are how `Spread` follows from ``gates``, ``graph`` the same as it does where gates learn.
    """

    def __post_init__(self) -> None:
        x = self.x
        self.gates = [t.requires_grad_(self.learns) for t in (x.step, x.log_decay, x.log_momentum) if t is not None]
        with torch.set_grad_enabled(self.learns):
            self.graph = spread(x)
        self.ways: Spread = self.graph.like([t.detach() for t in self.graph.tensors])

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

    def lost(self, delta: Tensor, gates: list[Tensor]) -> Tensor:
        return delta

    def written(self, read: Tensor, gates: list[Tensor]) -> list[Tensor]:
        return [read * gate for gate in gates]

    def add(
        self, memory: Memory, chunk: int, place: int, passed: list[Tensor], reads: list[Tensor], delta: Tensor
    ) -> None:
        old, new = memory.around(chunk, place)
        torch.mul(old[0], passed[0], out=new[0])
        if len(reads) > 1:
            new[0].addcmul_(old[1], passed[1])
            put(torch.mul(old[1], passed[2], out=new[1]), reads[1].mT, delta, -1)
        put(new[0], reads[0].mT, delta, -1)

    def read(self, memory: Memory, products: list[Tensor], slopes: list[Tensor]) -> list[Tensor]:
        x, answers = self.x.q, []
        through = [through_gelu(slope, z) for slope, z in zip(slopes, products, strict=False)]
        factors = zip([self.x.k, *map(F.gelu, products)], [*through, slopes[-1]], strict=True)
        for place, (read, delta) in enumerate(factors):
            x = F.gelu(answers[-1]) if answers else x
            y = ((x @ read.mT).mul_(self.ways.pairs).neg_() @ delta).flatten(0, 1)
            for gate, layers in zip(self.reading, memory.parts, strict=True):
                put(y, (x * gate).flatten(0, 1), layers[place][: len(x)].flatten(0, 1))
            answers.append(y.view(*x.shape[:3], -1))
        return answers


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
        parts: the sums' layers, then the momentum's if there is one, each ``(chunks + 1, heads, i, o)``; ``at`` has
            for each chunk, of each part, the layers. held: the momentum is kept for the backward pass.
    """

    parts: list[list[Tensor]]
    held: bool = False

    def __post_init__(self) -> None:
        each = range(len(self.parts[0][0]))
        self.at = [[[x[chunk] for x in part] for part in self.parts] for chunk in each]

    @classmethod
    def of(cls, given: Given, count: int) -> Self:
        """Of that many chunks, the first of which begins with what is given."""

        def room(x: Tensor) -> Tensor:
            places = x.new_empty(count + 1, x.shape[0] * x.shape[1], *x.shape[2:])
            places[0] = x.detach().flatten(0, 1)
            return places

        return cls([[room(x) for x in part] for part in (given.w.sums, given.w.momentum) if part])

    @property
    def begun(self) -> list[Tensor]:
        """The memory at the first chunk's start."""
        return [x.clone() for part in self.at[0] for x in part]

    def begin(self, begun: Iterable[Tensor]) -> None:
        """At the first chunk's start with this, which may be the sums alone."""
        for place, x in zip([x for part in self.at[0] for x in part], begun, strict=False):
            place.copy_(x)

    def holding(self, momentum: list[Tensor]) -> Memory:
        """The same with other room for the momentum, or what stands there."""
        return Memory([self.parts[0], momentum], held=True)

    def behind(self, count: int, held: bool) -> Memory:
        """One that begins with what stands behind that many chunks; ``held``: this one's momentum is not to change."""
        after = self.holding([torch.empty_like(x) for x in self.parts[1]]) if held else self
        after.begin([x for part in self.at[count] for x in part])
        return after

    def around(self, chunk: int, place: int) -> tuple[list[Tensor], list[Tensor]]:
        """One layer of each part, before the chunk and behind it."""
        before, behind = ([part[place] for part in self.at[here]] for here in (chunk, chunk + 1))
        return before, behind


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
        part.renew(memory, chunk)
        layers, reads = memory.at[chunk][0], [key]
        for layer, room in zip(layers[:-1], z, strict=False):
            reads.append(F.gelu(torch.bmm(reads[-1], layer, out=room)))
        delta = part.lost(torch.baddbmm(value, reads[-1], layers[-1], beta=-2, alpha=2, out=slope[-1]), gates)
        for place in reversed(range(len(layers))):
            if place < len(products):
                delta = through_gelu(torch.bmm(delta, layers[place + 1].mT, out=slope[place]), z[place])
            part.add(memory, chunk, place, passed, part.written(reads[place], gates), delta)
    return products, slopes


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
