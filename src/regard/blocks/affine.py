"""One matrix, or two of low rank with an activation between."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from regard.core.layer import Activation, Rank

EPSILON = 1e-6
ACTIVATIONS = {
    "silu": silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "rms": lambda x: rms_norm(x, x.shape[-1:], eps=EPSILON),
}


class Affine(nn.Linear):
    """``y = x W + b``, or ``y = inner(x W₁) W + b`` of low rank.

    Args:
        width, size: of x and y. rank: columns of W₁, None for a single matrix; see `inner_size`. inner: the activation,
            None for the identity. bias: whether there is b.
    """

    def __init__(
        self, width: int, size: int, rank: int | None = None, inner: Activation | None = None, bias: bool = True
    ) -> None:
        super().__init__(width if rank is None else rank, size, bias)
        self.down = None if rank is None else nn.Linear(width, rank, bias=False)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if self.down is not None:
            x = self.down(x)
            x = x if self.inner is None else ACTIVATIONS[self.inner](x)
        return super().forward(x)


def inner_size(rank: Rank | None, width: int, value_dim: int) -> int | None:
    """The columns of a map of low rank, at most the width of the hidden states."""
    if rank is None:
        return None
    return min({"value": value_dim, "sixteenth": math.ceil(width / 16)}[rank] if isinstance(rank, str) else rank, width)
