"""Token shift: every map of a layer reads a mixture of a token and the one before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.blocks.convolution import extended, shifted_sum
from regard.core.layout import Layout

POWER = 0.7
SPREAD = 0.01
"""Of what the data add to the mixture at the start."""


class TokenShift(nn.Module):
    """``z_s = x_t + μ_s ⊙ δ_t``, ``δ_t = x_{t−1} − x_t``, for each reader s of the hidden states.

        μ_s constant,   or of the data: μ_s + tanh((x_t + μ' ⊙ δ_t) A_s) B_s

    x_{t−1} is the real token before in the same document, zero before the first. μ_s starts as 1 − (c/width)^0.7 over
    the channels c.

    Args:
        width: of the hidden states. readers: their names. rank: of A_s and B_s; None for constant μ.

    Papers: Peng et al., arXiv 2305.13048 (constant), 2404.05892 (of the data).
    """

    past: Tensor

    def __init__(self, width: int, readers: Sequence[str], rank: int | None = None) -> None:
        super().__init__()
        self.readers, self.rank = list(readers), rank
        start = 1 - (torch.arange(width) / width) ** POWER
        self.share = nn.Parameter(start.repeat(len(self.readers), 1))
        self.register_buffer("past", torch.tensor([[-1.0], [1.0]]).expand(2, width), persistent=False)
        if rank is not None:
            self.common = nn.Parameter(start.clone())
            self.down = nn.Linear(width, len(self.readers) * rank, bias=False)
            self.up = nn.Parameter(torch.empty(len(self.readers), rank, width).uniform_(-SPREAD, SPREAD))

    def forward(self, x: Tensor, layout: Layout) -> dict[str, Tensor]:
        """What each reader is given of all tokens ``x (b, n, width)`` of a layout."""
        return self.mixed(x, shifted_sum(x, self.past, layout.key_mask, layout.positions(x.shape[1], x.device)))

    def extend(
        self, x: Tensor, tail: Tensor, seen: Tensor, key_mask: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The same of new tokens, and the new tail ``(b, 1, width)``, which is the last real token."""
        delta, tail = extended(x, self.past, tail, seen, key_mask)
        return self.mixed(x, delta), tail

    def mixed(self, x: Tensor, delta: Tensor) -> dict[str, Tensor]:
        """``x + μ ⊙ δ`` by reader."""
        if self.rank is None:
            return {name: x + self.share[s] * delta for s, name in enumerate(self.readers)}
        inner = torch.tanh(self.down(x + self.common * delta)).unflatten(-1, (len(self.readers), self.rank))
        return {
            name: x + (self.share[s] + inner[..., s, :] @ self.up[s]) * delta for s, name in enumerate(self.readers)
        }

    @property
    def flops(self) -> int:
        """FLOPs of the matrix products for each token."""
        return 0 if self.rank is None else 2 * (self.down.weight.numel() + self.up.numel())
