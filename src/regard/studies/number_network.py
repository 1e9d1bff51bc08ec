"""Networks that compute on numbers: lists in, lists out."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from regard.blocks.attention import Attention
from regard.core.errors import wrong
from regard.core.mechanism import Mechanism
from regard.core.sizes import Sizes
from regard.mechanisms.scored.positional import Positional
from regard.mechanisms.scored.softmax import Softmax
from regard.projections.base import Grouped, Projection
from regard.projections.values_only import ValuesOnly


class NumberNetwork(nn.Module):
    """Layers that join each token with what it attends to, without norms or residuals.

        h_0 = z W,   h_{l+1} = MLP_l([h_l, [A_1 h_l W^V_1 … A_H h_l W^V_H] W^O]),   out = h_L W'

    Positional: z is the number, and A comes from positions, anew in every layer. Standard: z is the number and the
    one-hot position, and A = softmax(q kᵀ / √d). A last token that holds zero is room to compute in; it is not read.

    Shapes: ``numbers (b, n)`` -> ``(b, n)``.

    Args:
        n: numbers in a list. attention: whose weights. width, heads: of the layers. depth: number of layers. inner:
            units of each MLP, which has one hidden layer of ReLU.

    Raises:
        ValueError: another kind of attention, or heads that do not divide the width.

    Paper: Back de Luca et al., arXiv 2410.01686.
    """

    def __init__(
        self,
        n: int,
        attention: Literal["positional", "standard"] = "positional",
        width: int = 64,
        heads: int = 2,
        depth: int = 4,
        inner: int = 64,
    ) -> None:
        super().__init__()
        if attention not in ("positional", "standard") or width % heads:
            raise wrong("attention, heads", f"{attention!r}, {heads}", f"positional or standard, a divisor of {width}")
        self.n, self.positional = n, attention == "positional"
        self.read_in, self.read_out = nn.Linear(1 if self.positional else n + 2, width), nn.Linear(width, 1)
        self.attentions = nn.ModuleList(Attention(*self.parts(n + 1, width, heads)) for _ in range(depth))
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, inner), nn.ReLU(), nn.Linear(inner, width)) for _ in range(depth)
        )

    def parts(self, places: int, width: int, heads: int) -> tuple[Mechanism, Projection]:
        """One layer's mechanism and projection."""
        if self.positional:
            return Positional(heads, places, places), ValuesOnly(width, heads, width // heads)
        return Softmax(), Grouped(Sizes(width, heads, heads, width, width // heads))

    def forward(self, numbers: Tensor) -> Tensor:
        z = nn.functional.pad(numbers, (0, 1))[..., None]
        if not self.positional:
            z = torch.cat([z, torch.eye(self.n + 1, dtype=z.dtype, device=z.device).expand(z.shape[0], -1, -1)], -1)
        h = self.read_in(z)
        for attention, network in zip(self.attentions, self.networks, strict=True):
            h = network(torch.cat([h, attention(h)], -1))
        return self.read_out(h)[:, :-1, 0]
