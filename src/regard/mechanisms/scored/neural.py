"""Neural attention: a small network scores each pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, check_sizes
from regard.kernels.tiled import Span
from regard.mechanisms.scored.base import Scored


@dataclass(frozen=True)
class Network:
    """``s_ij = w_h · σ(x_i + y_j)`` of queries x and keys y; ``out (h, D)`` is w, ``activation`` σ."""

    out: Tensor
    activation: Callable[[Tensor], Tensor] = torch.relu

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return (self.out,)

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        hidden = self.activation(q[..., :, None, :] + k[..., None, :, :])
        return (hidden @ self.out.to(q.dtype)[:, None, :, None])[..., 0]


@published(
    "neural",
    family="scored",
    row=182,
    title="Neural Attention: A Novel Mechanism for Enhanced Expressive Power in Transformer Models",
    arxiv="2502.17206",
    year=2025,
    aliases=("neural_attention",),
    missing="the second hidden layer of the authors' code, and its projections of q and k, which all heads share",
    fidelity="hand values",
    claim=(
        Claim(
            "the tiled, factored form equals a network on the concatenated pair",
            cells="scored.factored_pair",
            holds="common.within(most=1e-10)",
        ),
        Claim(
            "it selects keys by a relation of bits that a dot-product head cannot",
            cells="scored.pointer",
            holds="scored.selects_by_a_relation",
        ),
    ),
)
class NeuralAttention(Scored):
    """Softmax attention whose scores come from a network of one hidden layer on each pair of query and key.

        A = softmax_j(w_h · relu(W_h [q_i; k_j] + b_h)),   computed as relu((Q_h q_i) + (K_h k_j + b_h))

    Memory is that of a tile times the hidden size, whatever the length.

    Args:
        heads, head_dim: of q. hidden: units of each head's network, D.

    Raises:
        ValueError: a size below one, or q of other sizes.

    Paper: DiGiugno and Mahmood, arXiv 2502.17206.
    """

    def __init__(self, heads: int = 4, head_dim: int = 64, hidden: int = 8) -> None:
        super().__init__()
        if min(heads, head_dim, hidden) < 1:
            raise wrong("heads, head_dim, hidden", f"{heads}, {head_dim}, {hidden}", "at least 1 each")
        self.query = nn.Parameter(torch.randn(heads, head_dim, hidden) * head_dim**-0.5)
        self.key = nn.Parameter(torch.randn(heads, head_dim, hidden) * head_dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(heads, hidden))
        self.out = nn.Parameter(torch.randn(heads, hidden) * hidden**-0.5)

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Network:
        return Network(self.out)

    def prepared(self, q: Tensor, k: Tensor, **signals: Tensor) -> tuple[Tensor, Tensor]:
        dtype = q.dtype
        return q @ self.query.to(dtype), k @ self.key.to(dtype) + self.bias.to(dtype)[:, None]

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        check_sizes(q, *self.query.shape[:2])

    def products(self, shape: Shape) -> tuple[int, int]:
        hidden = self.out.shape[1]
        return hidden, (shape.n + shape.keys) * shape.head_dim * hidden

    @classmethod
    def examples(cls) -> Sequence[Example]:
        torch.manual_seed(0)
        return [
            Example("3 units", cls(3, Example.head_dim, 3), heads=3, kv_heads=3),
            Example("4 units, grouped", cls(4, Example.head_dim, 4), heads=4, kv_heads=2),
        ]
