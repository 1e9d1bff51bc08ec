"""The transformer block: attention and a gated network, each behind a norm and added to what came in."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.attention import Attention, AttentionState, Handed
from regard.core.layout import Layout


class GatedNetwork(nn.Module):
    """``y = (silu(x W_g) ⊙ x W_u) W_d``, the SwiGLU network.

    Args:
        width: of the hidden states. inner: of the two products; 0 for a network that has no parameters and gives zeros.

    Paper: Shazeer, arXiv 2002.05202.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            self.gate = nn.Linear(width, inner, bias=False)
            self.up = nn.Linear(width, inner, bias=False)
            self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """``h = x + attention(norm(x))``, with ``h + cross(norm(h), context)`` where there is cross-attention, then
    ``h + network(norm(h))``.

    Args:
        attention: over the block's own tokens. width: of the hidden states. inner: of the gated network, 0 for none.
        cross: attention to another sequence, None for none. eps: under the root of the norms.
    """

    def __init__(
        self, attention: Attention, width: int, inner: int, cross: Attention | None = None, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.attention, self.cross, self.network = attention, cross, GatedNetwork(width, inner)
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps) for _ in range(2 if cross is None else 3))
        if not inner:
            self.norms[1] = nn.Identity()

    def forward(
        self,
        x: Tensor,
        layout: Layout = Layout(),
        context: Tensor | None = None,
        seen: Layout = Layout(),
        handed: Handed | None = None,
    ) -> Tensor:
        """``(b, n, width)`` of ``x (b, n, width)``, attending to ``context (b, m, width)`` under ``seen``.

        ``handed`` is what the layers of one pass hand on, where the attention `hands`.
        """
        told = {} if handed is None else {"handed": handed}
        return self.rest(x + self.attention(self.norms[0](x), layout, **told), context, seen)

    def rest(self, x: Tensor, context: Tensor | None, seen: Layout) -> Tensor:
        """What follows self-attention."""
        if self.cross is not None:
            x = x + self.cross(self.norms[2](x), seen, context)
        return x + self.network(self.norms[1](x))

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        """The state before any token."""
        return self.attention.start(batch, device=device, dtype=dtype)

    def extend(
        self,
        x: Tensor,
        state: AttentionState,
        key_mask: Tensor | None = None,
        context: Tensor | None = None,
        seen: Layout = Layout(),
        handed: Handed | None = None,
    ) -> tuple[Tensor, AttentionState]:
        """``(the new tokens' hidden states, the state after them)``."""
        told = {} if handed is None else {"handed": handed}
        out, state = self.attention.extend(self.norms[0](x), state, key_mask, **told)
        return self.rest(x + out, context, seen), state
