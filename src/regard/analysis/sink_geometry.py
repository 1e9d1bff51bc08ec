"""The geometry of attention sinks: a map as a graph, and what kind of reference frame its hubs make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regard.analysis.base import Result
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by

Frame = Literal["centralised", "bidirectional", "distributed"]
MOST = 256
"""Tokens at most: spectra take n³ steps."""
HUB = 0.2
"""Share of all mass from which a token is a hub."""
ENDS = 0.05
"""Share of the tokens that counts as an end of the text."""


@dataclass(frozen=True)
class Geometry(Result):
    """What the graph of one map is like.

    Args:
        frame: the kind of reference frame. hubs: tokens that hold `HUB` of the mass or more, the most massive first.
        concentration: share of the mass that the most massive holds. centralisation: of degrees, 1 for a star.
        fiedler: second eigenvalue of the Laplacian, 0 where the graph falls apart. components, cycles: Betti numbers β₀
            and β₁. divergence: of the mass from an even one, in nats.
    """

    frame: Frame
    hubs: tuple[int, ...]
    concentration: float
    centralisation: float
    fiedler: float
    components: int
    cycles: int
    divergence: float
    name = "sink_geometry"

    def table(self) -> list[dict[str, Any]]:
        return [vars(self) | {"hubs": list(self.hubs)}]


@published(
    "sink_geometry",
    family="observe",
    kind="analysis",
    row=40,
    title="What are you sinking? A geometric approach on attention sink",
    arxiv="2508.02546",
    year=2025,
    fidelity="abstract only",
    claim=(
        Claim(
            "graphs with one hub, several, and hubs at both ends are told apart",
            cells="frames.synthetic",
            holds="frames.all_are_told",
        ),
        Claim(
            "the maps of a causal language model with rotary positions are mostly centralised",
            cells="frames.of_smollm2",
            holds="frames.mostly_centralised",
        ),
        Claim(
            "frames are there after the first fifth of training and stay: Bigram-Backcopy, one head",
            cells="frames.trained",
            holds="frames.early",
        ),
    ),
)
@shown_by(lambda: [Sample("star and ring", geometry, {"known": star_and_ring})])
def geometry(weights: Tensor, threshold: float = 0.05) -> Geometry:
    """The graph of one map: tokens, joined where one gives the other at least ``threshold``, directions forgotten.

        mass_j = mean_i A_ij,   centralisation = Σ_v (max deg − deg_v) / ((n − 1)(n − 2)),   β₁ = |E| − n + β₀

    *Centralised* is a map with one hub; *bidirectional* one with hubs among the first and the last twentieth of the
    tokens; *distributed* every other.

    Args:
        weights: A ``(n, n)``, 3 ≤ n ≤ 256. threshold: of an edge.

    Raises:
        ValueError: no such map.

    The graphs of all thresholds at once are a `filtration`.

    Paper: Ruscio et al., arXiv 2508.02546, whose abstract names the measures and the frames; what counts
    as a hub, and which hubs make which frame, is ours, as the abstract gives no rule.
    """
    n = len(weights)
    if weights.shape != (n, n) or not 3 <= n <= MOST:
        raise wrong("weights", f"shape {tuple(weights.shape)}", f"(n, n), n from 3 to {MOST}")
    joined = weights >= threshold
    joined = (joined | joined.T) & ~torch.eye(n, dtype=torch.bool, device=weights.device)
    degrees = joined.sum(1)
    mass = weights.double().mean(0)
    share = mass / mass.sum()
    hubs = [j for j in share.argsort(descending=True).tolist() if float(share[j]) >= HUB]
    laplacian = torch.diag(degrees).double() - joined.double()
    components = count_components(joined)
    return Geometry(
        frame_of(hubs, n),
        tuple(hubs),
        float(share.max()),
        float((degrees.max() - degrees).sum()) / ((n - 1) * (n - 2)),
        max(0.0, float(torch.linalg.eigvalsh(laplacian)[1])),
        components,
        int(degrees.sum()) // 2 - n + components,
        float((share * (share * n).clamp(min=1e-300).log()).sum()),
    )


@dataclass(frozen=True)
class Filtration(Result):
    """The Betti numbers of a map's graphs at every threshold, from the largest weight down.

    Args:
        thresholds: ``(k,)`` float64, the weights at which edges come in, descending. components, cycles: ``(k,)``
            int64, β₀ and β₁ of the graph of all edges from that threshold on. joined: ``(n − 1,)`` float64,
            the thresholds at which two components become one, descending; 0 for those that never do.
    """

    thresholds: Tensor
    components: Tensor
    cycles: Tensor
    joined: Tensor
    name = "sink_filtration"

    def at(self, threshold: float) -> tuple[int, int]:
        """β₀ and β₁ of the graph of one threshold."""
        count = int((self.thresholds >= threshold).sum())
        if not count:
            return len(self.joined) + 1, 0
        return int(self.components[count - 1]), int(self.cycles[count - 1])

    @property
    def spread(self) -> float:
        """The mean of the thresholds at which components join: the area under β₀ − 1, over n − 1."""
        return float(self.joined.mean())

    def table(self) -> list[dict[str, Any]]:
        columns = (self.thresholds.tolist(), self.components.tolist(), self.cycles.tolist())
        return [{"threshold": t, "components": b, "cycles": c} for t, b, c in zip(*columns, strict=True)]


def filtration(weights: Tensor) -> Filtration:
    """The superlevel filtration of one map: how components and cycles come and go as weaker edges are let in.

        w_ij = max(A_ij, A_ji),   G_t = {ij : w_ij ≥ t},   β₀(t) = n − |forest edges ≥ t|,   β₁(t) = |E_t| − n + β₀(t)

    The thresholds at which components join are the weights of a maximum spanning forest (Kruskal).

    Args:
        weights: A ``(n, n)``, 3 ≤ n ≤ 256; edges of weight 0 are none.

    Raises:
        ValueError: no such map.
    """
    n = len(weights)
    if weights.shape != (n, n) or not 3 <= n <= MOST:
        raise wrong("weights", f"shape {tuple(weights.shape)}", f"(n, n), n from 3 to {MOST}")
    rows, columns = torch.triu_indices(n, n, 1)
    wide = weights.detach().double().cpu()
    sizes = torch.maximum(wide[rows, columns], wide[columns, rows])
    order = sizes.argsort(descending=True, stable=True)
    order = order[sizes[order] > 0]
    forest = Forest(n)
    bridges = [forest.join(int(rows[i]), int(columns[i])) for i in order.tolist()]
    found, edges = sizes[order], torch.arange(1, len(order) + 1)
    components = n - torch.tensor(bridges, dtype=torch.int64).cumsum(0)
    last = torch.ones(len(order), dtype=torch.bool)
    last[:-1] = found[1:] < found[:-1]  # of equal weights all come in at once
    cycles = (edges - n + components)[last]
    joined = found[torch.tensor(bridges, dtype=torch.bool)]
    joined = torch.cat([joined, joined.new_zeros(n - 1 - len(joined))])
    return Filtration(found[last], components[last], cycles, joined)


def frame_of(hubs: list[int], n: int) -> Frame:
    """The kind of frame that these hubs make."""
    near = max(1, round(ENDS * n))
    if any(j < near for j in hubs) and any(j >= n - near for j in hubs):
        return "bidirectional"
    return "centralised" if len(hubs) == 1 else "distributed"


class Forest:
    """Sets of nodes that edges join one by one.

    Args:
        n: nodes.
    """

    def __init__(self, n: int) -> None:
        self.parent = list(range(n))

    def root(self, v: int) -> int:
        """The node that stands for v's set."""
        while self.parent[v] != v:
            self.parent[v] = self.parent[self.parent[v]]
            v = self.parent[v]
        return v

    def join(self, i: int, j: int) -> bool:
        """Whether the edge joins two sets that were apart."""
        one, other = self.root(i), self.root(j)
        self.parent[one] = other
        return one != other


def count_components(joined: Tensor) -> int:
    """β₀ of a graph, by joining the parents of every edge."""
    forest = Forest(len(joined))
    return len(joined) - sum(forest.join(i, j) for i, j in joined.triu(1).nonzero().tolist())


def star_and_ring() -> tuple[Tensor, Tensor]:
    """A star of 7: centralised, second eigenvalue 1, no cycle. A ring of 6: none of it, 2 − 2 cos 60°, one cycle."""
    star, ring = torch.zeros(7, 7), torch.eye(6).roll(1, 1)
    star[:, 0] = 1
    found = [geometry(star), geometry(ring)]
    numbers = [[g.centralisation, g.fiedler, g.components, g.cycles, len(g.hubs)] for g in found]
    return torch.tensor(numbers, dtype=torch.float64), torch.tensor([[1.0, 1, 1, 0, 1], [0, 1, 1, 1, 0]]).double()
