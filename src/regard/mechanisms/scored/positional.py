"""Positional attention: who attends to whom is decided by positions alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, LayerSpec, Traits, accumulate_dtype
from regard.kernels import tiled
from regard.kernels.tiled import Span
from regard.mechanisms.scored.base import Scored


@dataclass(frozen=True)
class Placed:
    """``s_ij = x_i · y_j`` of what stands for the places of queries and keys, whatever q and k hold.

    Args:
        queries, keys: x ``(b or 1, h, n, D)``, scaled, and y ``(b or 1, h, m, D)``.
    """

    queries: Tensor
    keys: Tensor

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return self.queries, self.keys

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        scores = self.queries[:, :, span.rows] @ self.keys[:, :, span.cols].mT
        return scores.expand(q.shape[0], -1, -1, -1).contiguous()


@published(
    "positional",
    family="scored",
    row=347,
    title="Positional Attention: Expressivity and Learnability of Algorithmic Computation",
    arxiv="2410.01686",
    year=2024,
    aliases=("positional_attention", "positional_transformer"),
    fidelity="authors' code",
    claim=(
        Claim(
            "weights are the same for every input",
            cells="positional.maps",
            holds="positional.is_the_same_for_every_input",
        ),
        Claim(
            (
                "trained on [−2, 2], sums, minima, medians and sorted lists of numbers 5 to 10 times as large"
                " keep a third of a standard network's error or less"
            ),
            cells="positional.network",
            holds="positional.keeps_a_third",
        ),
    ),
)
class Positional(Scored):
    """Softmax attention between encodings of positions: the same matrix for every input.

        A_h = softmax((P W^Q_h + b^Q_h) (P W^K_h + b^K_h)ᵀ / √D)

    P is ``encodings``, W and b are ``query``, ``key`` and their ``biases``; q and k only say how many tokens there are.
    Positions count the real tokens of a sequence or document.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: 2 D FLOPs for each score, once for all sequences of a batch, 2 e for each weight, and 2 (n + m) E D a head for
    the encodings of size E. State: all keys and values.

    Args:
        heads: of q. places: how many positions there are. size: D. sine: size E of sinusoidal encodings, None for
            one-hot ones, E = ``places``.

    Raises:
        ValueError: a size below one, odd sinusoids, other heads than q has, or more tokens than places.

    Paper: Back de Luca et al., arXiv 2410.01686; there one-hot encodings, D = E and the scale of the published code.
    """

    traits = Traits(masked=True, rows="one", sign="nonnegative", content=False)
    encodings: Tensor
    layer = LayerSpec(rotary=False)

    def __init__(self, heads: int = 4, places: int = 512, size: int = 16, sine: int | None = None) -> None:
        super().__init__()
        if min(heads, places, size, sine or 1) < 1:
            raise wrong("heads, places, size, sine", f"{heads}, {places}, {size}, {sine}", "at least 1 each")
        if sine is not None and sine % 2:
            raise wrong("sine", str(sine), "an even number, sines and cosines")
        encodings = torch.eye(places) if sine is None else sinusoids(places, sine)
        self.register_buffer("encodings", encodings, persistent=False)
        bound = (6 / (encodings.shape[1] + 2 * heads * size)) ** 0.5  # Xavier's of one matrix for all heads, q and k
        self.query, self.key = (
            nn.Parameter(torch.empty(heads, encodings.shape[1], size).uniform_(-bound, bound)) for _ in range(2)
        )
        self.biases = nn.Parameter(torch.zeros(2, heads, size))

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Placed:
        """The scores of queries and keys that stand where the layout says."""
        wide = accumulate_dtype(q.dtype)
        where = layout.query_positions(q.shape[2], m, q.device).clamp(min=0), layout.positions(m, q.device)
        queries, keys = (
            self.encodings.to(wide)[places][:, None] @ matrix.to(wide) + bias.to(wide)[:, None]
            for places, matrix, bias in zip(where, (self.query, self.key), self.biases, strict=True)
        )
        return Placed(queries * self.query.shape[2] ** -0.5, keys)

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        heads, places = self.query.shape[0], self.encodings.shape[0]
        if q.shape[1] != heads:
            raise wrong("q", f"{q.shape[1]} heads", f"{heads}, the heads of the positions' matrices")
        last = layout.positions(k.shape[2], k.device)
        if last.numel() and int(last.max()) >= places:
            raise wrong("k", f"{int(last.max()) + 1} tokens", f"at most {places}, the places that have an encoding")

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        cells, (_, encoding, size) = tiled.cells(shape.n, shape.keys, layout.causal), self.query.shape
        placed = (shape.n + shape.keys) * encoding * size + cells * size
        base = super().cost(shape, layout)
        flops = 2 * shape.heads * (placed + shape.batch * cells * shape.values)
        return Cost(flops, base.bytes, base.state_bytes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        torch.manual_seed(0)
        return [
            Example("one-hot", cls(3, 577, 3), heads=3, kv_heads=3),
            Example("sines, grouped", cls(4, 577, 5, sine=6), heads=4, kv_heads=2),
        ]


def sinusoids(places: int, size: int) -> Tensor:
    """``(places, size)``: sines, then cosines, of positions at wavelengths from 2π to 2π · 10,000."""
    rates = 10_000.0 ** -torch.linspace(0, 1, size // 2)
    angles = torch.arange(places)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
