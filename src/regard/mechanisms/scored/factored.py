"""Factored attention: the weights themselves are learned, one for each offset on a periodic lattice."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, LayerSpec, Traits, accumulate_dtype, repeat_heads
from regard.kernels import tiled
from regard.kernels.tiled import Span
from regard.mechanisms.scored.base import Scored
from regard.mechanisms.scored.parts.tile_scores import Offsets
from regard.patterns.grid import coordinates


def as_they_are(scores: Tensor, span: Span) -> Tensor:
    """The normaliser that leaves weights alone."""
    return scores.contiguous()


@published(
    "factored",
    family="scored",
    row=112,
    title="Are queries and keys always relevant? A case study on Transformer wave functions",
    arxiv="2405.18874",
    year=2024,
    aliases=("factored_attention", "input_free"),
    fidelity="hand values",
    claim=Claim(
        (
            "the weights of a head are the same for every input and follow offsets on the lattice alone; "
            "there are neither queries nor keys to learn"
        ),
        cells="scored.torus",
        holds="scored.is_the_same_for_all",
    ),
)
class Factored(Scored):
    """Attention without queries and keys: each head has one learned weight for each offset on a periodic lattice.

        A_ij = α_h[(r_i − r_j) mod grid]

    α is ``alpha``, of any sign and not normalised; r_i is the cell of the i-th token, in row-major order; q and k only
    say how many tokens there are.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: 2 e FLOPs for each weight. State: all keys and values.

    Args:
        heads: of q. grid: sizes of the lattice, one for each of its dimensions.

    Raises:
        ValueError: a size below one, other heads than q has, or more tokens than cells.

    Paper: Rende and Viteritti, arXiv 2405.18874.
    """

    traits = Traits(masked=True, content=False)
    layer = LayerSpec(rotary=False)

    def __init__(self, heads: int = 4, grid: Sequence[int] = (32, 32)) -> None:
        super().__init__()
        if min(heads, *grid, 1) < 1:
            raise wrong("heads, grid", f"{heads}, {tuple(grid)}", "sizes of at least 1")
        self.grid = tuple(grid)
        self.alpha = nn.Parameter(torch.randn(heads, prod(self.grid)) * prod(self.grid) ** -0.5)

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Offsets:
        """The weights of queries and keys that stand where the layout says."""
        places = layout.query_positions(q.shape[2], m, q.device), layout.positions(m, q.device)
        queries, keys = (coordinates(tokens, self.grid) for tokens in places)
        return Offsets(self.alpha.to(accumulate_dtype(q.dtype)), self.grid, queries, keys, periodic=True)

    def normalised(self, scores: Tensor, allowed: Tensor) -> Tensor:
        return scores.masked_fill(~allowed, 0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        score, heads = self.score(q, k.shape[2], layout), q.shape[1]
        return tiled.attend(q, repeat_heads(k, heads), repeat_heads(v, heads), layout, score, as_they_are).to(q.dtype)

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        heads, cells = self.alpha.shape
        if q.shape[1] != heads:
            raise wrong("q", f"{q.shape[1]} heads", f"{heads}, the heads of alpha")
        last = layout.positions(k.shape[2], k.device)
        if last.numel() and int(last.max()) >= cells:
            raise wrong("k", f"{int(last.max()) + 1} tokens", f"at most {cells}, the cells of the grid {self.grid}")

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        base = super().cost(shape, layout)
        cells = tiled.cells(shape.n, shape.keys, layout.causal)
        return Cost(2 * shape.batch * shape.heads * cells * shape.values, base.bytes, base.state_bytes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        torch.manual_seed(0)
        return [
            Example("a line", cls(3, (577,)), heads=3, kv_heads=3),
            Example("a plane, grouped", cls(4, (19, 31)), heads=4, kv_heads=2),
        ]
