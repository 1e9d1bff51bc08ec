"""Attention between the places of words on a page: boxes, their embedding, one A, and layers that reuse it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.blocks.attention import Attention
from regard.blocks.block import Block, GatedNetwork
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.mechanisms.scored.softmax import Softmax
from regard.projections.base import Grouped, split_heads
from regard.projections.values_only import ValuesOnly


class BoxEmbedding(nn.Module):
    """One vector for each box: six entries of four tables, summed and normed.

        ℓ = LayerNorm(X[x0] + X[x1] + Y[y0] + Y[y1] + W[x1 − x0] + H[y1 − y0])

    The tables are ``x``, ``y``, ``w`` and ``h``.

    Shapes: ``boxes (b, n, 4)`` int64, x0, y0, x1, y1 of each -> ``(b, n, width)``.

    Args:
        width: of the vectors. places: coordinates run from 0 to ``places`` − 1.

    Raises:
        TypeError: boxes that are not int64. ValueError: of another shape, out of range, or turned inside out.
    """

    def __init__(self, width: int, places: int = 1024) -> None:
        super().__init__()
        if min(width, places) < 1:
            raise wrong("width, places", f"{width}, {places}", "at least 1 each")
        self.x, self.y, self.w, self.h = (nn.Embedding(places, width) for _ in range(4))
        for table in (self.x, self.y, self.w, self.h):
            nn.init.normal_(table.weight, std=width**-0.5)
        self.norm = nn.LayerNorm(width)

    def forward(self, boxes: Tensor) -> Tensor:
        self.check(boxes)
        x0, y0, x1, y1 = boxes.unbind(-1)
        return self.norm(self.x(x0) + self.x(x1) + self.y(y0) + self.y(y1) + self.w(x1 - x0) + self.h(y1 - y0))

    def check(self, boxes: Tensor) -> None:
        if boxes.dtype != torch.int64:
            raise wrong("boxes", f"dtype {boxes.dtype}", "int64", TypeError)
        if boxes.dim() != 3 or boxes.shape[2] != 4:
            raise wrong("boxes", f"shape {tuple(boxes.shape)}", "(batch, tokens, 4): x0, y0, x1, y1")
        places = self.x.num_embeddings
        if boxes.numel() and not 0 <= int(boxes.min()) <= int(boxes.max()) < places:
            raise wrong("boxes", f"{int(boxes.min())} to {int(boxes.max())}", f"0 to {places - 1}")
        if (boxes[..., 2:] < boxes[..., :2]).any():
            raise wrong("boxes", "x1 < x0 or y1 < y0", "x0 <= x1 and y0 <= y1")


class Skim(nn.Module):
    """A from the layout of a page alone: no text goes in.

        A_h = softmax(ℓ W^Q_h (ℓ W^K_h)ᵀ / √d)

    ℓ are the embedded boxes, behind a small encoder of their own where ``depth`` is above 0.

    Shapes: ``boxes (b, n, 4)`` int64 -> ``(b, h, n, n)``. Cost: 2 n² d FLOPs and n² numbers a head, once for all layers
    that use A, and 4 n width h d for queries and keys.

    Args:
        width: of ℓ. heads: h. places: see `BoxEmbedding`. depth: blocks of the layout's encoder.

    Raises:
        ValueError: heads that do not divide the width.

    Paper: Nguyen et al., arXiv 2109.01078.
    """

    def __init__(self, width: int, heads: int, places: int = 1024, depth: int = 0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise wrong("heads", str(heads), f"a divisor of the width {width}")
        self.heads, self.embedding, self.softmax = heads, BoxEmbedding(width, places), Softmax()
        self.encoder = nn.ModuleList(
            Block(Attention(Softmax(), Grouped(Sizes.even(width, heads))), width, inner(width)) for _ in range(depth)
        )
        self.q, self.k = (nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, boxes: Tensor, layout: Layout = Layout()) -> Tensor:
        x = self.embedding(boxes)
        for block in self.encoder:
            x = block(x, layout)
        return self.softmax.weights(split_heads(self.q(x), self.heads), split_heads(self.k(x), self.heads), layout)


class SkimBlock(nn.Module):
    """A block whose attention is given: ``h = x + [A_1 z W^V_1 … A_h z W^V_h] W^O``, z = norm(x), and a gated network.

    Shapes: ``x (b, n, width)``, ``weights (b, h, n, n)`` -> ``(b, n, width)``.

    Args:
        width: of the hidden states. heads: of ``weights``, which is A.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.values, self.network = ValuesOnly(width, heads, width // heads), GatedNetwork(width, inner(width))
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        z = self.norms[0](x)
        x = x + self.values.merge(weights @ self.values(z, z)[2])
        return x + self.network(self.norms[1](x))


def inner(width: int) -> int:
    """Of a gated network: 8/3 of the width, to the next multiple of 8."""
    return -(-width * 8 // 24) * 8
