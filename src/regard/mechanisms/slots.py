"""Tokens moved to their places in chunks, for recurrences that begin anew, or take stock, every so many tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard.kernels.rows import ordered
from regard.kernels.scan.online import Course


@dataclass(frozen=True)
class Slots:
    """Tokens moved to where they stand in chunks, one after another, padding left out.

    Args:
        token: ``(b, chunks · C)``, whose token stands in each slot, m for none. slot: ``(b, m)``, where each token
            stands, chunks · C for padding. size: C. course: where chunks begin and end.
    """

    token: Tensor
    slot: Tensor
    size: int
    course: Course

    def filled(self, x: Tensor) -> Tensor:
        """``(b, h, chunks, C, …)`` of ``x (b, h, m, …)``, zero where there is no token."""
        return picked(x, self.token).unflatten(2, (-1, self.size))

    def taken(self, x: Tensor) -> Tensor:
        """`filled` undone, zero for padding."""
        return picked(x.flatten(2, 3), self.slot)


def picked(x: Tensor, index: Tensor) -> Tensor:
    """``x (b, h, tokens, …)`` at ``index (b, new)`` of its tokens, zero behind the last."""
    x = torch.cat([x, x.new_zeros(*x.shape[:2], 1, *x.shape[3:])], 2)
    return ordered(x, index)


def slots_of(chunk: int, positions: Tensor, real: Tensor, offset: Tensor, packed: bool) -> Slots:
    """`Slots` of tokens at ``positions (b, m)`` in their documents, the first of them ``offset (b,)`` into a chunk."""
    (batch, m), device = real.shape, real.device
    inside = positions % chunk
    number = (real & (inside == 0)).cumsum(1) - 1 + (offset > 0)[:, None]  # of the token's chunk in this call
    count = max(int(number.max()) + 1, 1) if m else 1
    size = chunk
    if count == 1:  # the chunk's other slots are not here, and what stands where in it does not matter
        inside, size = (real.cumsum(1) - 1).clamp(min=0), max(int(real.sum(1).max()), 1) if m else 1
    slot = torch.where(real, number * size + inside, count * size)
    token = torch.full((batch, count * size + 1), m, device=device)
    token.scatter_(1, slot, torch.arange(m, device=device).expand(batch, -1))
    token = token[:, :-1]
    at = torch.where(real, number, count)

    def marked(chosen: Tensor) -> Tensor:
        """``(b, chunks)``: those that have a token that is chosen."""
        found = torch.zeros(batch, count + 1, dtype=torch.int64, device=device)
        return found.scatter_add_(1, at, chosen.long())[:, :count] > 0

    active = marked(real)
    opening, closing = marked(real & (positions % chunk == 0)), marked(real & (positions % chunk == chunk - 1))
    return Slots(
        token, slot, size, Course(opening, closing, active, marked(real & (positions == 0)) if packed else None)
    )
