"""Softmax attention over disjoint sets of keys, merged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Partial:
    """Softmax attention over some of the keys: all that the rest of the keys needs to know.

    Partials over disjoint key sets merge associatively and commutatively, with ``Partial.empty`` as identity:

        lse = log(exp(lse_1) + exp(lse_2)),   out = exp(lse_1 - lse) out_1 + exp(lse_2 - lse) out_2

    Args:
        out: ``(batch, heads, n, e)``, normalised within the set; zeros where the set is empty.
        lse: ``(batch, heads, n)``, log of the sum of the exponentiated scores; -inf where the set is empty.
    """

    out: Tensor
    lse: Tensor

    @classmethod
    def empty(cls, like: Tensor) -> Partial:
        """The partial over no keys, shaped like the output ``like``."""
        return cls(torch.zeros_like(like), like.new_full(like.shape[:-1], -torch.inf))

    def merge(self, other: Partial) -> Partial:
        """The partial over both sets of keys."""
        blind = torch.maximum(self.lse, other.lse) == -torch.inf
        total = torch.logaddexp(*(part.lse.masked_fill(blind, 0) for part in (self, other)))
        first, second = (torch.exp(part.lse - total)[..., None] for part in (self, other))
        out = self.out * first + other.out * second
        return Partial(out.to(self.out.dtype), total.masked_fill(blind, -torch.inf))

    def __add__(self, other: Partial) -> Partial:
        return self.merge(other)
