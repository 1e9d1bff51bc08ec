"""Attention along the edges of a graph: the base of graph attention layers."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.arguments import Configured
from regard.core.errors import wrong
from regard.core.mechanism import masked_softmax
from regard.kernels.segments import segment_softmax, segment_sum

Nodes = Tensor | tuple[Tensor, Tensor]
"""The features of all nodes ``(n, c)``; or of sources ``(m, c)`` and targets ``(n, c)`` apart, of a bipartite graph."""


class Lazy(nn.LazyLinear):
    """A linear map whose input size is that of its first input, begun as Glorot has it and without bias."""

    cls_to_become = nn.Linear  # pyright: ignore[reportAssignmentType]

    def reset_parameters(self) -> None:
        if not self.has_uninitialized_params() and self.in_features:  # pyright: ignore[reportAttributeAccessIssue]
            glorot(self)


def glorot(linear: nn.Linear) -> nn.Linear:
    """The map with Glorot's uniform numbers, its bias zero."""
    nn.init.xavier_uniform_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


class GraphAttention(Configured):
    """The base of graph attention: each node attends to the sources of the edges that lead to it.

        A_e = exp(s_e) / Σ_{f: target f = target e} exp(s_f),   out_i = Σ_{e: target e = i} A_e v_e

    A subclass makes its maps in its constructor by `map_of` and writes `project`, what scores and messages read,
    `score` ``(E, h)`` of each edge, and `messages` ``(E, h, d)``, v. Nothing is added to the edges that are given: who
    wants a node to see itself gives that edge. An edge that is given twice counts twice. A node without edges gets
    zeros, and the bias.

    Shapes: ``x (n, c)``, or a pair ``(m, c), (n, c)`` of sources and targets; ``edges (2, E)`` from source to target;
    ``edge_features (E, f)`` -> ``(n, h d)``, or ``(n, d)`` as the mean of the heads.
    Cost: that of the maps, and O(E h d) for the edges, in time and memory.

    Args:
        channels: c, of each node; None for those of the first call. size: d, of a head. heads: h. edge_channels: f;
            None for edges without features. concat: heads one after the other, else their mean.
        bias: added to the outputs; a subclass says where else. dropout: the chance that a weight is left out of a
            step of training, the others being raised to make up for it; `weights` are those without.

    Raises:
        ValueError: sizes below one, a dropout that is no chance; nodes, edges or features that do not fit each other.
            TypeError: edges that are no integers, features that are wanted or not.
    """

    static = False
    """Whether every target ranks the sources alike."""

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
        super().__init__()
        for name, given in (("channels", channels), ("size", size), ("heads", heads), ("edge_channels", edge_channels)):
            if given is not None and given < 1:
                raise wrong(name, str(given), "at least 1")
        if not 0 <= dropout < 1:
            raise wrong("dropout", str(dropout), "0 or more, below 1")
        self.dropout = dropout
        self.channels, self.size, self.heads, self.concat = channels, size, heads, concat
        self.edge_channels = edge_channels
        self.bias = nn.Parameter(torch.zeros(heads * size if concat else size)) if bias else None

    def map_of(self, bias: bool = False, edges: bool = False) -> nn.Linear:
        """A map to ``heads × size`` numbers, of nodes or of edges."""
        channels, out = self.edge_channels if edges else self.channels, self.heads * self.size
        return Lazy(out, bias) if channels is None else glorot(nn.Linear(channels, out, bias))

    def vector(self) -> nn.Parameter:
        """A learned vector for each head, ``(h, d)``, begun as Glorot has it."""
        return nn.Parameter(nn.init.xavier_uniform_(torch.empty(self.heads, self.size)))

    def split(self, x: Tensor) -> Tensor:
        """``(tokens, h d)`` as ``(tokens, h, d)``."""
        return x.unflatten(-1, (self.heads, self.size))

    def project(self, sources: Tensor, targets: Tensor | None) -> tuple[Tensor, ...]:
        """What edges read, each ``(nodes, h, d)``, of sources and targets; targets None for the same nodes."""
        raise NotImplementedError

    def score(self, projected: tuple[Tensor, ...], edges: Tensor, features: Tensor | None) -> Tensor:
        """s, ``(E, h)``; ``features (E, f)`` are those of the edges."""
        raise NotImplementedError

    def messages(self, projected: tuple[Tensor, ...], edges: Tensor, features: Tensor | None) -> Tensor:
        """v, ``(E, h, d)``."""
        raise NotImplementedError

    def normalised(self, scores: Tensor, targets: Tensor, count: int) -> Tensor:
        """A of the edges from their scores."""
        return segment_softmax(scores, targets, count)

    def weights(self, x: Nodes, edges: Tensor, edge_features: Tensor | None = None) -> Tensor:
        """A, ``(E, h)``, one row for each edge in the order in which they are given."""
        sources, targets, count = self.check(x, edges, edge_features)
        return self.normalised(self.score(self.project(sources, targets), edges, edge_features), edges[1], count)

    def dense(self, x: Nodes, edges: Tensor, edge_features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The definition: A as a masked softmax ``(h, n, E)`` over all edges for each node, and v ``(h, E, d)``."""
        sources, targets, count = self.check(x, edges, edge_features)
        projected = self.project(sources, targets)
        scores = self.score(projected, edges, edge_features).mT[:, None]
        own = edges[1] == torch.arange(count, device=edges.device)[:, None]
        a = masked_softmax(scores.expand(-1, count, -1), own)
        return a, self.messages(projected, edges, edge_features).transpose(0, 1)

    def forward(self, x: Nodes, edges: Tensor, edge_features: Tensor | None = None) -> Tensor:
        sources, targets, count = self.check(x, edges, edge_features)
        projected = self.project(sources, targets)
        a = self.normalised(self.score(projected, edges, edge_features), edges[1], count)
        a = F.dropout(a, self.dropout, self.training)
        return self.merged(segment_sum(a[..., None] * self.messages(projected, edges, edge_features), edges[1], count))

    def merged(self, heads: Tensor) -> Tensor:
        """The outputs of heads ``(n, h, d)`` in one, with the bias."""
        out = heads.flatten(1) if self.concat else heads.mean(1)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def check(self, x: Nodes, edges: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor | None, int]:
        """Sources, targets and how many nodes are given an output; raises an error that names what does not fit."""
        sources, targets = x if isinstance(x, tuple) else (x, None)
        for name, nodes in (("x", sources), ("x[1]", targets)):
            if nodes is None:
                continue
            if nodes.dim() != 2:
                raise wrong(name, f"shape {tuple(nodes.shape)}", "(nodes, channels)")
            if self.channels is not None and nodes.shape[1] != self.channels:
                raise wrong(name, f"{nodes.shape[1]} channels", f"{self.channels}")
        if edges.dtype not in (torch.int64, torch.int32):
            raise wrong("edges", f"dtype {edges.dtype}", "torch.int64 or torch.int32: numbers of nodes", TypeError)
        if edges.dim() != 2 or edges.shape[0] != 2:
            raise wrong("edges", f"shape {tuple(edges.shape)}", "(2, E): a row of sources, and one of targets")
        count = (sources if targets is None else targets).shape[0]
        for name, ends, nodes in (("edges[0]", edges[0], sources.shape[0]), ("edges[1]", edges[1], count)):
            if ends.numel() and (int(ends.min()) < 0 or int(ends.max()) >= nodes):
                raise wrong(name, f"numbers from {int(ends.min())} to {int(ends.max())}", f"0 to {nodes - 1}")
        self.check_features(edges.shape[1], features)
        return sources, targets, count

    def check_features(self, count: int, features: Tensor | None) -> None:
        """Raises an error that names the features of edges where they do not fit."""
        if features is None and self.edge_channels is not None:
            raise wrong("edge_features", "nothing", f"(E, {self.edge_channels})", TypeError)
        if features is not None and self.edge_channels is None:
            raise wrong("edge_features", f"shape {tuple(features.shape)}", "None: edge_channels is not set", TypeError)
        if features is not None and tuple(features.shape) != (count, self.edge_channels):
            raise wrong("edge_features", f"shape {tuple(features.shape)}", f"{(count, cast(int, self.edge_channels))}")
