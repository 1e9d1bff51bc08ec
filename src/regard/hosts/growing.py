"""Tensors that grow at the end a token at a time, most of the time without being copied."""

from __future__ import annotations

import torch
from torch import Tensor

PART = 32
"""Room is made for one more token for so many that are there."""


class Room:
    """Memory with room behind what is in it.

    Args:
        held: what is in it to begin with. axis: along which it grows. more: how much is to come next.
    """

    def __init__(self, held: Tensor, axis: int, more: int) -> None:
        t, size = held.shape[axis], list(held.shape)
        size[axis] = self.size = t + more + t // PART
        self.whole, self.axis, self.filled = held.new_empty(size), axis, 0
        self.latest = self.append(held)

    def fits(self, held: Tensor, new: Tensor) -> bool:
        """Whether ``new`` can be written behind ``held``, behind which nothing has been written yet."""
        if held is not self.latest or held.dtype != new.dtype or self.filled + new.shape[self.axis] > self.size:
            return False
        return torch.is_inference_mode_enabled() or not self.whole.is_inference()

    def append(self, new: Tensor) -> Tensor:
        """What is in it with ``new`` behind."""
        n = new.shape[self.axis]
        self.whole.narrow(self.axis, self.filled, n).copy_(new)
        self.filled += n
        self.latest = self.whole.narrow(self.axis, 0, self.filled)
        return self.latest


def grown(held: Tensor, new: Tensor, axis: int, room: Room | None) -> tuple[Tensor, Room | None]:
    """``(held and new along an axis, the memory that they are in)``, written into the ``room`` of ``held`` if it fits.

    What ``held`` was is as it was before. With gradients it is a plain concatenation, in memory of its own size.
    """
    if new.requires_grad or held.requires_grad:
        return torch.cat([held, new], axis), None
    if room is None or not room.fits(held, new):
        room = Room(held, axis, new.shape[axis])
    return room.append(new), room
