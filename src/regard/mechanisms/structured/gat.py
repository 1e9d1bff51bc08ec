"""Graph attention networks: a learned vector scores the sum of two projections, after or before a kink."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.mechanisms.structured.graph import GraphAttention


def drawn(layer: GraphAttention) -> GraphAttention:
    """The layer with a bias that is not zero, for its laws."""
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer


@published(
    "gat",
    family="structured",
    kind="graph",
    title="Graph Attention Networks",
    arxiv="1710.10903",
    year=2018,
    aliases=("graph_attention",),
    fidelity="third-party code",
    claim=Claim(
        "its attention is static: all nodes rank the nodes that they see alike",
        cells="graphs.ranked(layer='gat')",
        holds="graphs.alike",
    ),
)
class GAT(GraphAttention):
    """Graph attention whose score is a sum before the kink: ``s_e = LeakyReLU(a·W x_j + b·W x_i + c·W_f f_e)``.

    i is the target of the edge e, j its source, f its features; ``a`` is `source`, ``b`` `target`, ``c`` `edge`. The
    messages are ``v_e = W x_j``. LeakyReLU rises, so that b · W x_i moves all scores of a node and changes no order.

    Args:
        channels, size, heads, edge_channels, concat, bias, dropout: as in `GraphAttention`. slope: of LeakyReLU below
            zero.

    Paper: Veličković et al., arXiv 1710.10903.
    """

    static = True

    def __init__(
        self,
        channels: int | None = None,
        size: int = 8,
        heads: int = 1,
        edge_channels: int | None = None,
        concat: bool = True,
        bias: bool = True,
        slope: float = 0.2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(channels, size, heads, edge_channels, concat, bias, dropout)
        self.slope, self.map, self.source, self.target = slope, self.map_of(), self.vector(), self.vector()
        if edge_channels is not None:
            self.edge_map, self.edge = self.map_of(edges=True), self.vector()

    def project(self, sources: Tensor, targets: Tensor | None) -> tuple[Tensor, ...]:
        mapped = self.split(self.map(sources))
        return mapped, mapped if targets is None else self.split(self.map(targets))

    def score(self, projected: tuple[Tensor, ...], edges: Tensor, features: Tensor | None) -> Tensor:
        own = ((x * vector).sum(-1) for x, vector in zip(projected, (self.source, self.target), strict=True))
        scores = sum(part[ends] for part, ends in zip(own, edges, strict=True))
        if features is not None:
            scores = scores + (self.split(self.edge_map(features)) * self.edge).sum(-1)
        return F.leaky_relu(scores, self.slope)  # pyright: ignore[reportArgumentType]

    def messages(self, projected: tuple[Tensor, ...], edges: Tensor, features: Tensor | None) -> Tensor:
        return projected[0][edges[0]]

    @classmethod
    def examples(cls) -> list[Sample]:
        return [
            Sample("2 heads", drawn(cls(5, 3, 2))),
            Sample("edge features, mean of heads", drawn(cls(5, 3, 2, edge_channels=7, concat=False))),
        ]


@published(
    "gatv2",
    family="structured",
    kind="graph",
    row=187,
    title="How Attentive are Graph Attention Networks?",
    arxiv="2105.14491",
    year=2022,
    aliases=("dynamic_graph_attention",),
    fidelity="third-party code",
    claim=(
        Claim(
            "one layer of one head learns a dictionary of k keys, 10 to 20, which one of GAT does not at its best rate",
            cells="graphs.dictionary",
            holds="graphs.only_gatv2_learns_it",
        ),
        Claim(
            "its attention is dynamic: nodes rank the nodes that they see differently",
            cells="graphs.ranked(layer='gatv2')",
            holds="graphs.unlike",
        ),
    ),
)
class GATv2(GraphAttention):
    """Graph attention whose score is a small network: ``s_e = a · LeakyReLU(W_l x_j + W_r x_i + W_f f_e)``.

    i is the target of the edge e, j its source, f its features; W_l is `source`, W_r `target`, W_f `edge`, a `out`. The
    messages are ``v_e = W_l x_j``.

    Args:
        channels, size, heads, edge_channels, concat, dropout: as in `GraphAttention`. bias: added to both maps and the
            outputs.
        slope: of LeakyReLU below zero. shared: whether W_r is W_l.

    Paper: Brody, Alon and Yahav, arXiv 2105.14491.
    """

    def __init__(
        self,
        channels: int | None = None,
        size: int = 8,
        heads: int = 1,
        edge_channels: int | None = None,
        concat: bool = True,
        bias: bool = True,
        slope: float = 0.2,
        shared: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(channels, size, heads, edge_channels, concat, bias, dropout)
        self.slope, self.source = slope, self.map_of(bias)
        self.target = self.source if shared else self.map_of(bias)
        self.out = self.vector()
        self.edge = None if edge_channels is None else self.map_of(edges=True)

    def project(self, sources: Tensor, targets: Tensor | None) -> tuple[Tensor, ...]:
        return self.split(self.source(sources)), self.split(self.target(sources if targets is None else targets))

    def score(self, projected: tuple[Tensor, ...], edges: Tensor, features: Tensor | None) -> Tensor:
        hidden = projected[0][edges[0]] + projected[1][edges[1]]
        if features is not None and self.edge is not None:
            hidden = hidden + self.split(self.edge(features))
        return (F.leaky_relu(hidden, self.slope) * self.out).sum(-1)

    def messages(self, projected: tuple[Tensor, ...], edges: Tensor, features: Tensor | None) -> Tensor:
        return projected[0][edges[0]]

    @classmethod
    def examples(cls) -> list[Sample]:
        return [
            Sample("2 heads", drawn(cls(5, 3, 2))),
            Sample("edge features, mean of heads", drawn(cls(5, 3, 2, edge_channels=7, concat=False))),
            Sample("shared maps, no bias", cls(5, 4, 3, bias=False, shared=True)),
        ]
