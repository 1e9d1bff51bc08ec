"""Attention between the nodes of a graph that is told in text: whether heads follow its edges, hop by hop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Analysis, DenseMaps, HeadScores, sample_moments
from regard.analysis.head_divergence import every_map
from regard.analysis.planted import PLACES, causal_noise
from regard.analysis.relation_heads import word_map
from regard.core.atlas import Claim, published
from regard.core.edit import Edit, Place
from regard.core.errors import wrong
from regard.core.kinds import Sample

Edge = tuple[int, int]


@dataclass(frozen=True)
class GraphText:
    """A graph and a text that tells it.

    Args:
        ids: ``(n,)``. nodes: slots of each node's tokens, every mention of it. edges: pairs of nodes, undirected.
    """

    ids: Tensor
    nodes: tuple[tuple[int, ...], ...]
    edges: tuple[Edge, ...]

    def __post_init__(self) -> None:
        if any(not 0 <= node < len(self.nodes) for edge in self.edges for node in edge):
            raise wrong("edges", f"{self.edges}", f"pairs of the {len(self.nodes)} nodes")

    def shuffled(self, seed: int) -> GraphText:
        """The same text, its graph with the nodes exchanged: as many edges, of as many nodes each."""
        order = torch.randperm(len(self.nodes), generator=torch.Generator().manual_seed(seed)).tolist()
        return GraphText(self.ids, self.nodes, tuple((order[a], order[b]) for a, b in self.edges))


def hops(nodes: int, edges: Iterable[Edge]) -> Tensor:
    """``(nodes, nodes)`` int64: edges of the shortest path, −1 where there is none."""
    near = torch.eye(nodes, dtype=torch.bool)
    for a, b in edges:
        near[a, b] = near[b, a] = True
    found = torch.full((nodes, nodes), -1)
    reached = torch.eye(nodes, dtype=torch.bool)
    found[reached] = 0
    for step in range(1, nodes):
        further = ((reached.double() @ near.double()) > 0) & (found < 0)
        found[further], reached = step, reached | further
    return found


@published(
    "node_attention",
    family="observe",
    kind="analysis",
    row=270,
    title="Attention Mechanisms Perspective: Exploring LLM Processing of Graph-Structured Data",
    arxiv="2505.02130",
    year=2025,
    aliases=("graph_attention_study",),
    fidelity="abstract only",
    claim=(
        Claim(
            "a language model's heads follow the edges of a graph in text no more than those of a shuffled graph",
            cells="graph_texts.of_smollm2",
            holds="graph_texts.edges_are_not_followed",
        ),
        Claim(
            "nor do they where every node carries a text of its own",
            cells="graph_texts.of_long_texts",
            holds="graph_texts.edges_are_not_followed",
        ),
        Claim(
            "a model trained and read with a window of one hop tells more than one with all",
            cells="graph_texts.trained",
            holds="graph_texts.windows_train",
        ),
        Claim(
            "a model trained with a window of one hop and read with all tells more than one trained with all",
            cells="graph_texts.trained",
            holds="graph_texts.windows_help",
        ),
    ),
)
class NodeAttention(Analysis[GraphText, HeadScores]):
    """Correlation of each head's attention between nodes with the edges of their graph.

        A_uv = mean over tokens of u, sum over tokens of v
        r = correlation over pairs u ≠ v of A_uv and [u and v share an edge]

    In causal models the pairs are those whose weight is not zero. `hop_weights` gives the mean weight by distance.
    Controls: `GraphText.shuffled`, in whose graph the nodes are exchanged. Models are trained or read with windows of k
    hops by the edit `HopWindow`.

    Paper: Guan et al., arXiv 2505.02130, from whose abstract the aggregation is.

    Raises:
        ValueError: in a run no texts, or one whose pairs are all joined, or none.
    """

    name, threshold = "edge_correlation", 0.5

    @classmethod
    def examples(cls) -> list[Sample]:
        texts = [drawn_text(seed) for seed in range(3)]
        given: Mapping[str, Any] = {
            "data": texts,
            "planted": DenseMaps(lambda ids: planted_edges(ids, texts)),
            "null": DenseMaps(lambda ids: causal_noise(ids, 11)),
            "heads": PLACES,
            "score": cls.name,
            "threshold": cls.threshold,
            "permuted": lambda orders: DenseMaps(
                lambda ids: [a[:, list(o)] for a, o in zip(planted_edges(ids, texts), orders, strict=True)]
            ),
            "known": by_hand,
        }
        return [Sample("planted", cls(), given)]

    def run(self, subject: Any, data: Iterable[GraphText]) -> HeadScores:
        found: HeadScores | None = None
        for text in data:
            maps = [word_map(of, text.nodes) for of in every_map(subject, text.ids)]
            values = {layer: edge_correlation(of, text.edges)[None] for layer, of in enumerate(maps)}
            one = HeadScores(self.name, sample_moments(values))
            found = one if found is None else found.merge(one)
        if found is None:
            raise wrong("data", "no texts", "at least one")
        return found


class HopWindow(Edit):
    """Tokens see those of nodes that are at most k edges away, and what is of no node.

        s_ij ← −∞ where no node of i is within k hops of a node of j, and both are of nodes

    A model is trained with one window and read with another, or with none, which is the graph whose nodes are all
    joined. Texts are not padded.

    Args:
        windows: of the texts of a batch, ``(b, n, n)`` bool, as `hop_window` gives them; ``(n, n)`` for all.

    Raises:
        ValueError: another shape; while it runs, other texts.
    """

    def __init__(self, windows: Tensor) -> None:
        super().__init__()
        if windows.dim() not in (2, 3) or windows.shape[-1] != windows.shape[-2]:
            raise wrong("windows", f"shape {tuple(windows.shape)}", "(b, n, n) or (n, n)")
        self.windows = windows if windows.dim() == 3 else windows[None]

    def scores(self, place: Place) -> Tensor:
        n = self.windows.shape[1]
        if len(self.windows) not in (1, len(place.queries)) or place.start + place.m > n:
            what = f"{len(place.queries)} texts of {place.start + place.m} tokens"
            raise wrong("windows", what, f"those of the windows, shape {tuple(self.windows.shape)}")
        seen = self.windows.to(place.rows.device)[:, place.rows, place.start : place.start + place.m]
        return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -math.inf)[:, None]


def hop_window(text: GraphText, most: int) -> Tensor:
    """``(n, n)`` bool: whether a token sees another through at most so many edges; those of no node see all and are
    seen by all.

    Raises:
        ValueError: fewer than no hops.
    """
    if most < 0:
        raise wrong("most", str(most), "a number of edges from 0 on")
    n, far = len(text.ids), hops(len(text.nodes), text.edges)
    of = torch.zeros(len(text.nodes), n)
    for node, slots in enumerate(text.nodes):
        of[node, list(slots)] = 1
    near = ((far >= 0) & (far <= most)).float()
    free = of.sum(0) == 0
    return (of.T @ near @ of > 0) | free | free[:, None]


def edge_correlation(maps: Tensor, edges: Sequence[Edge]) -> Tensor:
    """``(heads,)``: the correlation of ``maps (heads, nodes, nodes)`` with the edges, over pairs that may see."""
    pairs = (maps > 0).any(0) & ~torch.eye(maps.shape[1], dtype=torch.bool)
    joined = (hops(maps.shape[1], edges) == 1)[pairs].double()
    if not 0 < float(joined.mean()) < 1:
        raise wrong("edges", f"{int(joined.sum())} of {len(joined)} pairs", "some of them, and not all")
    weights = maps[:, pairs].double()
    weights, joined = weights - weights.mean(1, keepdim=True), joined - joined.mean()
    return weights @ joined / (weights.norm(dim=1) * joined.norm()).clamp(min=1e-300)


def hop_weights(maps: Tensor, edges: Sequence[Edge], most: int) -> Tensor:
    """``(heads, most)``: the mean weight between nodes that are 1, 2, … edges apart; NaN where there are none."""
    far, seen = hops(maps.shape[1], edges), (maps > 0).any(0)
    rows = [maps[:, (far == step) & seen].double().mean(1) for step in range(1, most + 1)]
    return torch.stack(rows, 1)


def drawn_text(seed: int, nodes: int = 12) -> GraphText:
    """Nodes of one token each, in a random tree."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(nodes, generator=draw).tolist()
    edges = [(order[i], order[int(torch.randint(i, (1,), generator=draw))]) for i in range(1, nodes)]
    ids = torch.full((nodes,), seed)
    return GraphText(ids, tuple((i,) for i in range(nodes)), tuple(edges))


def planted_edges(ids: Tensor, texts: Sequence[GraphText]) -> list[Tensor]:
    """Noise with heads in it that share 0.9 among the earlier nodes that a row's node is joined to."""
    every, n = causal_noise(ids, 3), ids.shape[1]
    for row, text in enumerate(ids):
        near = (hops(n, texts[int(text[0])].edges) == 1).float().tril(-1)
        has = near.sum(1) > 0
        for layer, head in PLACES:
            every[layer][row, head, has] *= 0.1
            every[layer][row, head, has] += 0.9 * near[has] / near[has].sum(1, keepdim=True)
    return every


def by_hand() -> tuple[Tensor, Tensor]:
    """A path of three nodes: attention on neighbours alone has r = 1, on the others −1; hops are 1 and 2 apart."""
    edges = [(0, 1), (1, 2)]
    near = torch.tensor([[0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.1, 0.4, 0.5]])
    near[1, 0] = near[1, 2] = 0.4
    maps = torch.stack([near, 0.5 - near])
    got = torch.cat([edge_correlation(maps, edges), hop_weights(maps, edges, 2)[0], hops(3, edges).flatten().double()])
    return got, torch.tensor([1, -1, 0.4, 0.1, 0, 1, 2, 1, 0, 1, 2, 1, 0]).double()
