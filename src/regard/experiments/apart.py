"""Work in a forked process of its own: nothing that it keeps, trains or imports is there for what comes after it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Show = Callable[[str], None]
SHOWN, GIVEN = "shown", "given"


def can_fork() -> bool:
    """Whether a copy of this process can compute: on Linux, where PyTorch has no threads that a copy would lack."""
    return sys.platform == "linux" and torch.get_num_threads() == 1


def apart(work: Callable[[Show], Iterator[T]], show: Show) -> Iterator[T]:
    """What ``work`` yields, in a copy of this process as it is now; what yields must be fit to be pickled.

    Args:
        work: is given what tells of its progress. show: is told the same here.

    Raises:
        RuntimeError: the copy ended by an error or was killed.
    """
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=tell, args=(work, sender))
    process.start()
    sender.close()
    ended = False
    try:
        while not ended:
            try:
                kind, what = receiver.recv()
            except EOFError:
                ended = True
            else:
                if kind == SHOWN:
                    show(what)
                else:
                    yield what
    finally:
        if not ended:
            process.terminate()
        process.join()
        receiver.close()
    if process.exitcode:
        raise RuntimeError(f"the process that measured ended with {process.exitcode}")


def tell(work: Callable[[Show], Iterator[Any]], sender: Connection) -> None:
    """Sends what is yielded and what is shown."""
    for what in work(lambda text: sender.send((SHOWN, text))):
        sender.send((GIVEN, what))
    sender.close()
