"""The derivatives of a memory of the squared error over a segment of chunks, written out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.kernels.scan.online import through_gelu
from regard.kernels.scan.segments import Carried, Memory, Segment, TokenSteps, by_chunk, put

DENSITY = 0.3989422804014327
"""Of the normal distribution at 0."""


Part = TypeVar("Part", bound=Segment)


class Backward(ABC, Generic[Part]):
    """The derivatives of one segment; a subclass has those by what its kind of segment does.

    Args:
        part, memory: the segment, and the memory at its start. carried: the derivatives by the memory at its end, which
            become those at its start. products, slopes, answers: as `write` and `Segment.read` return them.
    """

    def __init__(
        self,
        part: Part,
        memory: Memory,
        carried: Carried,
        products: list[Tensor],
        slopes: list[Tensor],
        answers: list[Tensor],
    ) -> None:
        self.part, self.memory, self.carried, self.slopes, self.answers = part, memory, carried, slopes, answers
        self.tangents = [through_gelu(torch.ones_like(z), z) for z in products]
        self.reads = [part.x.k, *map(F.gelu, products)]
        self.deltas = [x * slope for x, slope in zip(self.tangents, slopes, strict=False)]
        self.deltas.append(part.lost(slopes[-1], part.writing))
        written = zip(*(part.written(x, part.writing) for x in self.reads), strict=True)
        self.written: list[list[Tensor]] = [list(x) for x in written]
        squares = [z * z for z in products]
        bends = [(-0.5 * square).exp_().mul_(square.sub_(2)).mul_(-DENSITY) for square in squares]
        self.curves = [bend.mul_(slope) for bend, slope in zip(bends, slopes, strict=False)]
        self.by_reads: list[Tensor] = []
        self.by_deltas: list[Tensor] = []
        self.asked: list[list[Tensor]] = [[] for _ in memory.parts]
        self.ups: list[Tensor] = []

    def run(self, up: Tensor) -> list[Tensor]:
        """The derivatives by the tokens, in the order of `Inputs.tensors`, from ``up``, those by their answers."""
        part = self.part
        self.form_again()
        by_q, by_v = self.through_answers(up), torch.empty_like(part.x.v)
        for chunk, at in reversed(list(enumerate(self.chunks()))):
            at.end(self.carried)
            by_v[chunk] = at.gradients(self.carried)
            fresh = part.begins(chunk)
            if fresh is not None:
                self.renew(chunk, fresh)
        by_real = [] if part.x.real is None else [torch.zeros_like(part.x.real)]
        return [by_q, self.by_reads[0], by_v, *self.through_gates(), *by_real]

    def form_again(self) -> None:
        """The memory at the start of each chunk, from what was written."""
        each = zip(by_chunk(self.deltas), self.part.passing, *map(by_chunk, self.written), strict=True)
        for chunk, (deltas, passed, *reads) in enumerate(each):
            self.part.renew(self.memory, chunk)
            for place in range(len(deltas) if chunk < len(self.deltas[0]) - 1 else 0):
                self.part.add(self.memory, chunk, place, passed, [x[place] for x in reads], deltas[place])

    def renew(self, chunk: int, fresh: Tensor) -> None:
        """Before a chunk that begins with the new layers where it is ``fresh (heads, 1, 1)``."""
        self.carried.renew(fresh)

    @property
    def layered(self) -> list[list[list[Tensor]]]:
        """Of each chunk, for all layers, the first fields of `At`."""
        lists = (self.reads, self.deltas, self.by_reads, self.by_deltas, self.ups, self.tangents, self.curves)
        each = zip(*(by_chunk(x) if x else [[]] * len(self.part.x.q) for x in lists), strict=True)
        return [list(x) for x in each]

    @abstractmethod
    def through_answers(self, up: Tensor) -> Tensor:
        """The derivatives by the queries of all chunks; begins ``by_reads``, ``by_deltas``, ``asked`` and ``ups``."""

    @abstractmethod
    def chunks(self) -> Iterator[At]:
        """Each of the chunks."""

    @abstractmethod
    def through_gates(self) -> list[Tensor]:
        """The derivatives by the gates, once the chunks are done."""


@dataclass
class At(ABC):
    """One chunk of `Backward`.

    Args:
        reads, deltas, by_reads, by_deltas, ups, tangents, curves: of each layer. memory: at the chunk's start.
        passed: `Segment.passing`, by which ``dot (layers, gates, heads)`` are the derivatives.
    """

    reads: list[Tensor]
    deltas: list[Tensor]
    by_reads: list[Tensor]
    by_deltas: list[Tensor]
    ups: list[Tensor]
    tangents: list[Tensor]
    curves: list[Tensor]
    memory: list[list[Tensor]]
    passed: list[Tensor]
    dot: Tensor

    @abstractmethod
    def end(self, carried: Carried) -> None:
        """From the derivatives by the memory behind the chunk to those by the one before it, as `Segment.add` has it,
        and as the queries read it."""

    @property
    def twice(self) -> Tensor | int:
        """The factor of the last layer's gradients by the error."""
        return 2

    def gradients(self, carried: Carried) -> Tensor:
        """From the derivatives by the gradients' factors to those by keys and values; returns the latter."""
        layers, grads, by_products = self.memory[0], carried.parts[0], []
        for place, (tangent, curve) in enumerate(zip(self.tangents, self.curves, strict=True)):
            through = self.by_deltas[place] * tangent
            by_products.append(self.by_deltas[place] * curve)
            put(self.by_deltas[place + 1], through, layers[place + 1])
            put(grads[place + 1], through.mT, self.deltas[place + 1])
        by_products.append(self.twice * self.by_deltas[-1])
        for place in reversed(range(len(layers))):
            put(self.by_reads[place], by_products[place], layers[place].mT)
            put(grads[place], self.reads[place].mT, by_products[place])
            if place:
                by_products[place - 1].addcmul_(self.by_reads[place], self.tangents[place - 1])
        return -by_products[-1]


class TokenBackward(Backward[TokenSteps]):
    """Where every token takes its own step."""

    def __init__(self, part: TokenSteps, *rest: Any) -> None:
        super().__init__(part, *rest)
        self.by_ways = part.ways.like([torch.zeros_like(x) for x in part.ways.tensors])
        self.backs = [[torch.empty_like(x) for x in self.reads] for _ in self.written]
        count, heads = part.x.q.shape[:2]
        self.dots = part.x.q.new_empty(count, len(self.reads), 3, heads)

    def through_answers(self, up: Tensor) -> Tensor:
        part, ways, count = self.part, self.by_ways, len(up)
        pairs, gates = -part.ways.pairs, part.reading
        by_gates = [x for x in (ways.sums, ways.momentum) if x is not None]
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

    def chunks(self) -> Iterator[At]:
        part = self.part
        of_parts = (zip(*map(by_chunk, x), strict=True) for x in (self.written, self.asked, self.backs))
        each = zip(
            self.layered, part.passing, self.dots, zip(*of_parts, strict=True), by_chunk(part.writing), strict=True
        )
        for chunk, (layers, passed, dot, parts, gates) in enumerate(each):
            yield TokenAt(*cast(Any, (*layers, self.memory.at[chunk], passed, dot, *parts, gates)))

    def through_gates(self) -> list[Tensor]:
        part, ways = self.part, self.by_ways
        stays, takes, left = self.dots.sum(1)[..., None, None].unbind(1)
        ways.sums[:, :, -1:] += stays
        if ways.momentum is not None and ways.left is not None:
            ways.momentum[:, :, -1:] += takes
            ways.left.copy_(left)
        for gate, of in zip((ways.last, ways.still), self.backs, strict=False):
            for reads, back in zip(self.reads, of, strict=True):
                cast(Tensor, gate).sub_(back.mul_(reads).sum(-1, keepdim=True))
        return list(torch.autograd.grad(part.graph.tensors, part.gates, ways.tensors))


@dataclass
class TokenAt(At):
    """One chunk of `TokenBackward`.

    Args:
        written, asked, backs: of each part of the memory, each layer. gates: of each part.
    """

    written: list[list[Tensor]]
    asked: list[list[Tensor]]
    backs: list[list[Tensor]]
    gates: list[Tensor]

    def end(self, carried: Carried) -> None:
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
