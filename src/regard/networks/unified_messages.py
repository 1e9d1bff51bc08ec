"""Unified message passing: a graph's features and the labels that are known of its nodes, in one network."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.core.errors import wrong
from regard.mechanisms.structured.graph import glorot
from regard.mechanisms.structured.graph_transformer import GraphTransformer


class GatedSkip(nn.Module):
    """Attention along edges, and around it a skip whose gate is learned, a norm and a kink.

        r = W x,   β = σ(w · [h; r; h − r]),   y = ReLU(LN((1 − β) h + β r)),   h what attention gives

    Shapes: as `GraphTransformer`: ``x (n, c)``, ``edges (2, E)`` -> ``(n, h d)``, or ``(n, d)`` as the mean of heads.

    Args:
        attention: with known channels. norm: False leaves LN and ReLU out, as in a last layer.

    Raises:
        ValueError: attention that takes its channels from its first call.

    Paper: Shi et al., arXiv 2009.03509.
    """

    def __init__(self, attention: GraphTransformer, norm: bool = True) -> None:
        super().__init__()
        if attention.channels is None:
            raise wrong("attention", "one of unknown channels", "one that was given its channels")
        width = attention.size * (attention.heads if attention.concat else 1)
        self.attention, self.skip = attention, glorot(nn.Linear(attention.channels, width))
        self.gate = glorot(nn.Linear(3 * width, 1, bias=False))
        self.norm = nn.LayerNorm(width) if norm else None

    def forward(self, x: Tensor, edges: Tensor, edge_features: Tensor | None = None) -> Tensor:
        h, r = self.attention(x, edges, edge_features), self.skip(x)
        share = torch.sigmoid(self.gate(torch.cat([h, r, h - r], -1)))
        out = (1 - share) * h + share * r
        return out if self.norm is None else F.relu(self.norm(out))


class UnifiedMessages(nn.Module):
    """Labels of a graph's nodes, from its features and from the labels that are known of other nodes.

        x⁰ = x + [known] E(label),   xˡ⁺¹ = `GatedSkip` of xˡ;   the last layer is the mean of its heads, without norm

    In training a share of the known labels is hidden and asked for; in use all that are known are given (`loss`).

    Shapes: ``x (n, c)``, ``edges (2, E)``, ``labels (n,)`` ids, ``known (n,)`` bool -> logits ``(n, classes)``.

    Args:
        channels: c. classes: of nodes. size, heads: of each layer. layers: at least one. dropout: of weights.
        edge_channels: of features of edges. seed: of the initial weights.

    Raises:
        ValueError: fewer than one layer or two classes.

    Paper: Shi et al., arXiv 2009.03509.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        size: int = 16,
        heads: int = 2,
        layers: int = 2,
        dropout: float = 0.0,
        edge_channels: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if layers < 1 or classes < 2:
            raise wrong("layers, classes", f"{layers}, {classes}", "at least 1, at least 2")
        if seed is not None:
            torch.manual_seed(seed)
        self.labels = nn.Embedding(classes, channels)
        widths = [channels, *[size * heads] * (layers - 1)]
        inner = [
            GatedSkip(GraphTransformer(a, size, heads, edge_channels, dropout=dropout)) for a, _ in pairwise(widths)
        ]
        last = GraphTransformer(widths[-1], classes, heads, edge_channels, concat=False, dropout=dropout)
        self.layers = nn.ModuleList([*inner, GatedSkip(last, norm=False)])

    def forward(
        self, x: Tensor, edges: Tensor, labels: Tensor, known: Tensor, edge_features: Tensor | None = None
    ) -> Tensor:
        if known.dtype != torch.bool or known.shape != labels.shape or labels.shape != x.shape[:1]:
            raise wrong("known", f"{known.dtype}, shape {tuple(known.shape)}", f"torch.bool, {tuple(x.shape[:1])}")
        x = x + self.labels(labels.where(known, 0)) * known[:, None]
        for layer in self.layers:
            x = layer(x, edges, edge_features)
        return x

    def loss(
        self,
        x: Tensor,
        edges: Tensor,
        labels: Tensor,
        known: Tensor,
        rate: float,
        generator: Generator,
        edge_features: Tensor | None = None,
    ) -> Tensor:
        """The cross-entropy at known nodes whose labels are hidden, each with the chance ``rate``; at least one is.

        Raises:
            ValueError: no known node, or a rate that is no chance.
        """
        if not 0 < rate <= 1 or not known.any():
            raise wrong("rate, known", f"{rate}, {int(known.sum())} nodes", "more than 0, at most 1; a known node")
        chances = torch.rand(known.shape, generator=generator).to(known.device).masked_fill(~known, 2.0)
        hidden = (chances < rate) | (chances == chances.min())
        logits = self(x, edges, labels, known & ~hidden, edge_features)
        return F.cross_entropy(logits[hidden], cast(Tensor, labels[hidden]))
