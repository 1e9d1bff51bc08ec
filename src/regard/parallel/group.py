"""What ranks say to each other: the processes of `torch.distributed`, or threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from regard.core.errors import wrong

Sizes = tuple[int, ...]
T = TypeVar("T")
LIMIT = 300.0
"""Seconds that a rank waits for the others before it raises."""


class Pending:
    """What is under way; `wait` gives it."""

    def __init__(self, finish: Callable[[], list[Tensor]]) -> None:
        self.finish = finish

    def wait(self) -> list[Tensor]:
        """What came from each rank.

        Raises:
            RuntimeError: another rank did not answer in time, or has failed.
        """
        return self.finish()


class Group:
    """Ranks that hold a sequence together; counts what this one sends to the others.

    A reduction counts as a ring of ranks does it: ``2 (P − 1) / P`` of its bytes.

    Args:
        rank: of this process or thread. size: P.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.sent = self.collectives = 0

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[Sizes]) -> Pending:
        """Gives ``parts[r]`` to rank r; what comes from it has shape ``shapes[r]``. All of one dtype."""
        self.sent += sum(part.nbytes for rank, part in enumerate(parts) if rank != self.rank)
        self.collectives += 1
        return self.exchanging(parts, shapes)

    def gather(self, x: Tensor, shapes: Sequence[Sizes]) -> list[Tensor]:
        """Every rank's ``x``, of these shapes."""
        return self.exchange([x] * self.size, shapes).wait()

    def shift(self, x: Tensor, shape: Sizes) -> Pending:
        """Gives ``x`` to the next rank; what comes from the one before, of this shape, is the only part."""
        nothing, after, before = x.new_empty(0), (self.rank + 1) % self.size, (self.rank - 1) % self.size
        parts = [x if rank == after else nothing for rank in range(self.size)]
        pending = self.exchange(parts, [shape if rank == before else (0,) for rank in range(self.size)])
        return Pending(lambda: [pending.wait()[before]])

    def reduce(self, x: Tensor, how: Literal["sum", "max"]) -> Tensor:
        """The sum or the largest of every rank's ``x``, on all of them."""
        self.sent += reduction_bytes(x.nbytes, self.size)
        self.collectives += 1
        return self.reducing(x, how)

    def exchanging(self, parts: Sequence[Tensor], shapes: Sequence[Sizes]) -> Pending:
        """`exchange`, uncounted."""
        raise NotImplementedError

    def reducing(self, x: Tensor, how: Literal["sum", "max"]) -> Tensor:
        """`reduce`, uncounted."""
        raise NotImplementedError


def reduction_bytes(bytes: int, ranks: int) -> int:
    """What each rank sends in a reduction over a ring."""
    return 2 * (ranks - 1) * bytes // ranks


class Distributed(Group):
    """The processes of `torch.distributed`, with any backend that can exchange and reduce (gloo, nccl).

    Args:
        group: of processes, None for all. limit: seconds that a rank waits for the others.

    Raises:
        RuntimeError: `torch.distributed` is not initialised.
    """

    def __init__(self, group: Any = None, limit: float = LIMIT) -> None:
        if not dist.is_initialized():
            raise wrong(
                "group", "none", "torch.distributed.init_process_group(…) first, as torchrun's jobs do", RuntimeError
            )
        super().__init__(dist.get_rank(group), dist.get_world_size(group))
        self.group, self.limit = group, timedelta(seconds=limit)

    def exchanging(self, parts: Sequence[Tensor], shapes: Sequence[Sizes]) -> Pending:
        given = torch.cat([part.detach().reshape(-1) for part in parts])
        counts = [torch.Size(shape).numel() for shape in shapes]
        came = given.new_empty(sum(counts))
        sizes = [part.numel() for part in parts]
        work: Any = dist.all_to_all_single(came, given, counts, sizes, group=self.group, async_op=True)

        def finish() -> list[Tensor]:
            work.wait(self.limit)
            assert given is not None  # what is sent must live until it has arrived
            return [part.view(shape) for part, shape in zip(came.split(counts), shapes, strict=True)]

        return Pending(finish)

    def gather(self, x: Tensor, shapes: Sequence[Sizes]) -> list[Tensor]:
        if any(shape != tuple(x.shape) for shape in shapes) or not x.numel():
            return super().gather(x, shapes)
        self.sent += (self.size - 1) * x.nbytes
        self.collectives += 1
        came = list(x.new_empty(self.size, *x.shape).unbind(0))
        work: Any = dist.all_gather(came, x.detach().contiguous(), group=self.group, async_op=True)
        work.wait(self.limit)
        return came

    def reducing(self, x: Tensor, how: Literal["sum", "max"]) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        operation = dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX
        work: Any = dist.all_reduce(total, operation, group=self.group, async_op=True)
        work.wait(self.limit)
        return total


class Board:
    """Where threads put what others take."""

    def __init__(self, size: int, limit: float) -> None:
        self.barrier = threading.Barrier(size, timeout=limit)
        self.size, self.slots = size, [()] * size

    def swap(self, rank: int, given: Any) -> list[Any]:
        """What every rank has put here, once all have."""
        self.slots[rank] = given
        try:
            self.barrier.wait()
            found = list(self.slots)
            self.barrier.wait()
        except threading.BrokenBarrierError:
            raise RuntimeError("another rank did not answer in time, or has failed") from None
        return found


class Threads(Group):
    """Threads of one process: the same calls without processes, for tests and for looking at what is sent."""

    def __init__(self, rank: int, board: Board) -> None:
        super().__init__(rank, board.size)
        self.board = board

    def exchanging(self, parts: Sequence[Tensor], shapes: Sequence[Sizes]) -> Pending:
        given = [part.detach().clone() for part in parts]  # which the giver may change before it is taken
        came = [row[self.rank] for row in self.board.swap(self.rank, given)]
        for rank, (part, shape) in enumerate(zip(came, shapes, strict=True)):
            if part.numel() != torch.Size(shape).numel():
                raise RuntimeError(f"{tuple(part.shape)} came from rank {rank}, where {shape} was awaited")
        found = [part.reshape(shape) for part, shape in zip(came, shapes, strict=True)]
        return Pending(lambda: found)

    def reducing(self, x: Tensor, how: Literal["sum", "max"]) -> Tensor:
        every = torch.stack(self.board.swap(self.rank, x.detach().clone()))
        return every.sum(0) if how == "sum" else every.amax(0)


def simulate(ranks: int, run: Callable[[Group], T], limit: float = 60.0) -> list[T]:
    """What ``run(group)`` gives on each of so many ranks, which are threads of this process.

    Raises:
        what the first rank to fail raised; the others, which wait for it, end too.
    """
    board = Board(ranks, limit)
    found: list[Any] = [None] * ranks
    failed: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            with torch.autograd.set_multithreading_enabled(False):  # else all ranks of a GPU share one backward thread
                found[rank] = run(Threads(rank, board))
        except BaseException as error:
            failed.append(error)
            board.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found


def sum_gradients(model: nn.Module, group: Group) -> None:
    """Makes the gradient of every parameter the sum of all ranks' gradients, in one reduction a dtype.

    Where each rank's loss is its part of the loss of the whole sequence, this is the whole's gradient.
    """
    learned = [p for p in model.parameters() if p.requires_grad]
    for dtype in sorted({p.dtype for p in learned}, key=str):
        own = [p for p in learned if p.dtype == dtype]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
        total = group.reduce(torch.cat([part.reshape(-1) for part in parts]), "sum")
        for p, part in zip(own, total.split([p.numel() for p in own]), strict=True):
            p.grad = part.view_as(p)
