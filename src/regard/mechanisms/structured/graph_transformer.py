"""Dot-product attention along edges."""

from __future__ import annotations

from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.mechanisms.structured.gat import drawn
from regard.mechanisms.structured.graph import GraphAttention


@published(
    "graph_transformer",
    family="structured",
    kind="graph",
    title="Masked Label Prediction: Unified Message Passing Model for Semi-Supervised Classification",
    arxiv="2009.03509",
    year=2021,
    aliases=("unimp", "transformer_conv"),
    fidelity="third-party code",
    claim=Claim(
        "its attention is dynamic: nodes rank the nodes that they see differently",
        cells="graphs.ranked(layer='graph_transformer')",
        holds="graphs.unlike",
    ),
)
class GraphTransformer(GraphAttention):
    """Multi-head attention along edges: ``s_e = q_i · (k_j + f_e) / √d``, ``v_e = v_j + f_e``.

    i is the target of the edge e, j its source, f a map of its features, which keys and values share. On a graph of all
    pairs it is the attention of a Transformer. The skip with a learned gate and the norm around it, and the training on
    masked labels, are `regard.networks.unified_messages`.

    Args:
        channels, size, heads, edge_channels, concat, dropout: as in `GraphAttention`. bias: of the three maps.

    Paper: Shi et al., arXiv 2009.03509.
    """

    def __init__(
        self,
        channels: int | None = None,
        size: int = 8,
        heads: int = 1,
        edge_channels: int | None = None,
        concat: bool = True,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(channels, size, heads, edge_channels, concat, bias=False, dropout=dropout)
        self.query, self.key, self.value = (self.map_of(bias) for _ in range(3))
        self.edge = None if edge_channels is None else self.map_of(edges=True)

    def project(self, sources: Tensor, targets: Tensor | None) -> tuple[Tensor, ...]:
        queries = self.split(self.query(sources if targets is None else targets))
        return queries * self.size**-0.5, self.split(self.key(sources)), self.split(self.value(sources))

    def score(self, projected: tuple[Tensor, ...], edges: Tensor, features: Tensor | None) -> Tensor:
        return (projected[0][edges[1]] * self.along(projected[1], edges, features)).sum(-1)

    def messages(self, projected: tuple[Tensor, ...], edges: Tensor, features: Tensor | None) -> Tensor:
        return self.along(projected[2], edges, features)

    def along(self, nodes: Tensor, edges: Tensor, features: Tensor | None) -> Tensor:
        """What sources send along the edges, with what the edges add."""
        sent = nodes[edges[0]]
        return sent if features is None or self.edge is None else sent + self.split(self.edge(features))

    @classmethod
    def examples(cls) -> list[Sample]:
        made = cls(5, 3, 2)
        for linear in (made.query, made.key, made.value):
            nn.init.normal_(linear.bias)
        return [Sample("2 heads", made), Sample("edge features, mean", drawn(cls(5, 3, 2, 7, concat=False)))]
