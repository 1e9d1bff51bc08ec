"""The derivatives of a memory that takes one step for each chunk, as of `summed.late`, written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.kernels.scan.backward import At, Backward
from regard.kernels.scan.online import Rule, recall, through_gelu
from regard.kernels.scan.segments import Carried, Given, Memory, Segment, by_chunk, put


@dataclass
class ChunkSteps(Segment):
    """A chunk takes one step when it ends, and its tokens are answered by the memory before it.

    θ multiplies each token's loss, so that its gradient is written as it is. Where a chunk is fresh, its first query is
    one of the chunk before, and answered by the memory behind that, which is kept in ``left`` by chunk.
    """

    def __post_init__(self) -> None:
        self.left: dict[int, list[Tensor]] = {}

    @property
    def writing(self) -> list[Tensor]:
        """The steps."""
        return [self.x.step[..., None]]

    @property
    def ends(self) -> list[Tensor]:
        """``(chunks, heads, 1, 1)``: what stays of the layers behind each chunk, and of the momentum if any."""
        logs = (x for x in (self.x.log_decay, self.x.log_momentum) if x is not None)
        return [x[..., -1:, None].exp() for x in logs]

    @property
    def passing(self) -> list[list[Tensor]]:
        return by_chunk(self.ends)

    @staticmethod
    def holds(given: Given) -> bool:
        """Where it is no more than the factors of the chunk's gradients."""
        sizes = [x.shape[2:] for x in given.w.momentum]
        return bool(sizes) and sum(i * o for i, o in sizes) <= given.x.q.shape[3] * sum(i + o for i, o in sizes)

    def renew(self, memory: Memory, chunk: int) -> None:
        """The sums alone: what is held of the momentum stays, and `add` has none of it."""
        fresh = self.begins(chunk)
        if fresh is not None:
            self.left[chunk] = [x.clone() for x in memory.at[chunk][0]]
            for x, new in zip(memory.at[chunk][0], self.new, strict=True):
                x.copy_(torch.where(fresh, new, x))

    def lost(self, delta: Tensor, gates: list[Tensor]) -> Tensor:
        return delta * gates[0]

    def written(self, read: Tensor, gates: list[Tensor]) -> list[Tensor]:
        return [read]

    def add(
        self, memory: Memory, chunk: int, place: int, passed: list[Tensor], reads: list[Tensor], delta: Tensor
    ) -> None:
        old, new = memory.around(chunk, place)
        torch.mul(old[-1], passed[-1], out=new[-1])
        fresh = self.begins(chunk) if len(old) > 1 else None
        if fresh is not None:
            new[1].masked_fill_(fresh, 0)
        put(new[-1], reads[0].mT, delta, -1)
        if len(old) > 1:
            torch.addcmul(new[1], old[0], passed[0], out=new[0])

    def read(self, memory: Memory, products: list[Tensor], slopes: list[Tensor]) -> list[Tensor]:
        x, answers = self.x.q, []
        for layers in memory.parts[0]:
            x = F.gelu(answers[-1]) if answers else x
            answers.append(x @ layers[: len(x)])
        for chunk, layers in self.left.items():
            first = answers[-1][chunk, :, :1]
            late = recall(Rule(), tuple(layers), self.x.q[chunk, :, :1])
            first.copy_(torch.where(cast(Tensor, self.begins(chunk)), late, first))
        return answers


class ChunkBackward(Backward[ChunkSteps]):
    """Where a chunk takes one step."""

    def form_again(self) -> None:
        if not self.memory.held:
            return super().form_again()
        for chunk, passed in enumerate(self.part.passing):
            self.part.renew(self.memory, chunk)
            for place in range(len(self.reads) if chunk < len(self.part.x.q) - 1 else 0):
                old, new = self.memory.around(chunk, place)
                torch.addcmul(new[1], old[0], passed[0], out=new[0])

    def through_answers(self, up: Tensor) -> Tensor:
        count, (up, by_late) = len(up), self.through_late(up)
        for place, x in reversed(list(enumerate([self.part.x.q, *map(F.gelu, self.answers)]))):
            self.ups.insert(0, up)
            self.asked[0].insert(0, x)
            self.by_reads.insert(0, torch.empty_like(self.reads[place]))
            self.by_deltas.insert(0, torch.empty_like(self.deltas[place]))
            down = up @ self.memory.parts[0][place][:count].mT
            up = through_gelu(down, self.answers[place - 1]) if place else down
        for chunk, by_query in by_late.items():
            up[chunk, :, :1] += by_query
        return up

    def through_late(self, up: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The rest of ``up``, and the derivatives by the queries of those that `ChunkSteps.left` answers."""
        part, by_late = self.part, {}
        up = up.clone() if part.left else up
        self.by_left: dict[int, list[Tensor]] = {}
        for chunk, layers in part.left.items():
            first, fresh = up[chunk, :, :1], cast(Tensor, part.begins(chunk))
            leaves = [x.detach().requires_grad_() for x in (part.x.q[chunk, :, :1], *layers)]
            with torch.enable_grad():
                late = recall(Rule(), tuple(leaves[1:]), leaves[0])
            by_late[chunk], *self.by_left[chunk] = torch.autograd.grad(late, leaves, first.masked_fill(~fresh, 0))
            first.masked_fill_(fresh, 0)
        return up, by_late

    def chunks(self) -> Iterator[At]:
        count, heads = self.part.x.q.shape[:2]
        self.dots = self.part.x.q.new_empty(count, len(self.reads), 2, heads)
        asked = by_chunk(self.asked[0])
        each = zip(self.layered, self.part.passing, self.dots, asked, by_chunk(self.part.writing), strict=True)
        for chunk, (layers, passed, dot, asked, gates) in enumerate(each):
            yield ChunkAt(*cast(Any, (*layers, self.memory.at[chunk], passed, dot, asked, 2 * gates[0])))

    def renew(self, chunk: int, fresh: Tensor) -> None:
        super().renew(chunk, fresh)
        for grad, late in zip(self.carried.parts[0], self.by_left[chunk], strict=True):
            grad += late

    def through_gates(self) -> list[Tensor]:
        x = self.part.x
        found = [(self.by_deltas[-1] * self.slopes[-1]).sum(-1)]
        for place, gate in enumerate(self.part.ends):
            dots, by_log = self.dots[:, :, place].sum(1), torch.zeros_like(x.step)
            if place and self.part.fresh is not None:
                dots = dots.masked_fill(self.part.fresh[..., 0, 0], 0)
            by_log[..., -1] = dots * gate[..., 0, 0]
            found.append(by_log)
        return found


@dataclass
class ChunkAt(At):
    """One chunk of `ChunkBackward`.

    Args:
        asked: what the queries come to before each layer. by_error: the last layer's δ by the error.
    """

    asked: list[Tensor]
    by_error: Tensor

    @property
    def twice(self) -> Tensor:
        return self.by_error

    def end(self, carried: Carried) -> None:
        for place, (read, delta) in enumerate(zip(self.reads, self.deltas, strict=True)):
            grads, old = ([x[place] for x in parts] for parts in (carried.parts, self.memory))
            torch.sum(grads[0] * old[0], (1, 2), out=self.dot[place, 0])
            if len(grads) > 1:
                grads[1] += grads[0]
            torch.baddbmm(self.by_reads[place], delta, grads[-1].mT, beta=0, alpha=-1, out=self.by_reads[place])
            torch.baddbmm(self.by_deltas[place], read, grads[-1], beta=0, alpha=-1, out=self.by_deltas[place])
            if len(grads) > 1:
                torch.sum(grads[1] * old[1], (1, 2), out=self.dot[place, 1])
                grads[1].mul_(self.passed[1])
            put(grads[0].mul_(self.passed[0]), self.asked[place].mT, self.ups[place])
