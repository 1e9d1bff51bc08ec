"""Attention over depth: the last layer's token looks back at what earlier layers made of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import wrong


class DepthAttention(nn.Module):
    """The last hidden state of a token attends to the states that all layers gave the same token.

        a_l = softmax_l(q · k_l / √d),   q = norm(h_L) W^Q,   k_l = norm(h_l) W^K_l,   v_l = norm(h_l) W^V_l
        y = h_L + W^O Σ_{l<L} a_l v_l

    a is ``weights``. What falls on the last layer itself adds nothing, since h_L is there already: with a_L = 1 the
    output is h_L. No token sees another, so there is nothing to mask and nothing to keep for decoding.

    Shapes: ``hidden``: L states ``(b, n, width)`` -> ``(b, n, width)``. Parameters: 2 width² (L + 1).

    Args:
        width: of the hidden states. heads: a divisor of it. depth: L, at least 2.

    Raises:
        ValueError: heads that do not divide the width, fewer than two layers, or another number of hidden states.
    """

    def __init__(self, width: int, heads: int, depth: int, eps: float = 1e-6) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise wrong("heads", str(heads), f"a divisor of the width {width}")
        if depth < 2:
            raise wrong("depth", str(depth), "at least 2 layers")
        self.width, self.heads, self.depth = width, heads, depth
        self.norm = nn.RMSNorm(width, eps)
        self.q, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Parameter(torch.randn(depth, width, width) * width**-0.5) for _ in range(2))
        with torch.no_grad():
            self.out.weight.mul_((2 * depth) ** -0.5)

    def forward(self, hidden: Sequence[Tensor]) -> Tensor:
        return self.mix(hidden, self.weights(hidden))

    def weights(self, hidden: Sequence[Tensor]) -> Tensor:
        """a: ``(b, n, heads, L)``, rows that sum to one."""
        k = self.projected(hidden, self.k)
        q = self.q(self.norm(hidden[-1])).unflatten(2, (self.heads, -1))
        return torch.softmax(torch.einsum("bnhd,bnlhd->bnhl", q, k) * k.shape[-1] ** -0.5, dim=-1)

    def mix(self, hidden: Sequence[Tensor], weights: Tensor) -> Tensor:
        """y under any weights ``(b, n, heads, L)``."""
        v = self.projected(hidden, self.v)[:, :, :-1]
        return hidden[-1] + self.out(torch.einsum("bnhl,bnlhd->bnhd", weights[..., :-1], v).flatten(2))

    def projected(self, hidden: Sequence[Tensor], maps: Tensor) -> Tensor:
        """Each layer's states by its own matrix: ``(b, n, L, heads, d)``."""
        if len(hidden) != self.depth:
            raise wrong("hidden", f"{len(hidden)} states", f"those of the {self.depth} layers")
        found = [F.linear(self.norm(x), matrix) for x, matrix in zip(hidden, maps, strict=True)]
        return torch.stack(found, 2).unflatten(3, (self.heads, -1))
