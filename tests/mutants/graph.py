"""Mutants of graph attention: for each law, a layer of GATv2 broken in one way."""

from __future__ import annotations

import torch

from regard.core.kinds import Sample
from regard.core.mechanism import masked_softmax
from regard.kernels.segments import segment_sum
from regard.mechanisms.structured.gat import GATv2
from regard.mechanisms.structured.graph import GraphAttention


class Plain(GATv2):
    """Two heads, with features of edges."""

    def __init__(self) -> None:
        super().__init__(5, 3, 2, edge_channels=7)

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls())]


ORIGINAL = Plain
MUTANTS: dict[str, list[type[GraphAttention]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[GraphAttention]) -> type[GraphAttention]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        return mutant

    return register


@breaks("definition", "gradients")
class EdgesCountOnce(Plain):
    """Drops an edge that is given twice from the sums."""

    def forward(self, x, edges, edge_features=None):
        pairs, first = edges[0] * 1000 + edges[1], {}
        kept = [place for place, pair in enumerate(pairs.tolist()) if first.setdefault(pair, place) == place]
        return super().forward(x, edges[:, kept], None if edge_features is None else edge_features[kept])


@breaks("rows", "full", "isolated")
class LoopsAdded(Plain):
    """Adds an edge from each node to itself."""

    def weights(self, x, edges, edge_features=None):
        sources, targets, _ = self.check(x, edges, edge_features)
        return super().weights(x, *self.looped(edges, edge_features, sources, targets))

    def forward(self, x, edges, edge_features=None):
        sources, targets, _ = self.check(x, edges, edge_features)
        return super().forward(x, *self.looped(edges, edge_features, sources, targets))

    def looped(self, edges, features, sources, targets):
        count = min(x.shape[0] for x in (sources, targets) if x is not None)
        loops = torch.arange(count, device=edges.device).expand(2, -1)
        features = None if features is None else torch.cat([features, features.new_zeros(count, features.shape[1])])
        return torch.cat([edges, loops], 1), features


@breaks("rows", "full")
class OverTheSources(Plain):
    """Softmax over the edges that leave a node."""

    def weights(self, x, edges, edge_features=None):
        sources, targets, count = self.check(x, edges, edge_features)
        scores = self.score(self.project(sources, targets), edges, edge_features)
        return self.normalised(scores, edges[0], max(count, sources.shape[0]))


@breaks("rows", "full", "definition", "gradients")
class Single(Plain):
    """Softmax in single precision whatever it is given."""

    def normalised(self, scores, targets, count):
        return super().normalised(scores.float(), targets, count).to(scores.dtype)


@breaks("order")
class SortedEdges(Plain):
    """Gives the weights in the order of the targets."""

    def weights(self, x, edges, edge_features=None):
        return super().weights(x, edges, edge_features)[edges[1].argsort(stable=True)]


@breaks("nodes")
class NumbersMatter(Plain):
    """Adds the number of the source to its score."""

    def score(self, projected, edges, features):
        return super().score(projected, edges, features) + 0.1 * edges[0][:, None]


@breaks("isolated")
class MeanWhereAlone(Plain):
    """Gives nodes without edges the mean of all."""

    def forward(self, x, edges, edge_features=None):
        out = super().forward(x, edges, edge_features)
        count, source = out.shape[0], self.source(x[0] if isinstance(x, tuple) else x)
        alone = ~torch.isin(torch.arange(count, device=out.device), edges[1])
        return torch.where(alone[:, None], source.mean(0), out)


@breaks("local")
class Global(Plain):
    """Takes the mean of all nodes off the scores' inputs."""

    def project(self, sources, targets):
        return super().project(sources - sources.mean(0), targets)


@breaks("ranking")
class Static(Plain):
    """Scores by the source alone."""

    def score(self, projected, edges, features):
        return super().score((projected[0], 0 * projected[1]), edges, features)


@breaks("ranking")
class DynamicThoughStatic(Plain):
    """Says that it is static."""

    static = True


@breaks("gradients")
class NoPeak(Plain):
    """Softmax without taking off the largest score."""

    def normalised(self, scores, targets, count):
        powers = scores.exp()
        return powers / segment_sum(powers, targets, count)[targets]


@breaks("gradients")
class KeysDetached(Plain):
    """Learns nothing through what is sent."""

    def forward(self, x, edges, edge_features=None):
        sources, targets, count = self.check(x, edges, edge_features)
        projected = self.project(sources, targets)
        a = self.normalised(self.score(projected, edges, edge_features), edges[1], count)
        sent = self.messages(projected, edges, edge_features).detach()
        return self.merged(segment_sum(a[..., None] * sent, edges[1], count))


@breaks("definition")
class HalfSums(Plain):
    """Weighs the last edge by the softmax over all nodes' edges."""

    def normalised(self, scores, targets, count):
        weights = super().normalised(scores, targets, count).clone()
        every = torch.ones(1, scores.shape[0], dtype=torch.bool, device=scores.device)
        weights[-1] = masked_softmax(scores.mT[:, None], every)[:, 0, -1]
        return weights


@breaks("refusals")
class TakesAnything(Plain):
    """Takes numbers of nodes modulo how many there are."""

    def check(self, x, edges, features):
        sources, targets = x if isinstance(x, tuple) else (x, None)
        count = (sources if targets is None else targets).shape[0]
        if edges.dim() == 2 and edges.shape[0] == 2 and edges.dtype == torch.int64:
            edges %= count
        return super().check(x, edges, features)
