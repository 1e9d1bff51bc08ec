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
    missing="filtrations over all thresholds, development over training, how the paper labels frames",
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

    Paper: Ruscio et al., arXiv 2508.02546, from whose abstract the measures are; hubs and labels are ours.
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


def frame_of(hubs: list[int], n: int) -> Frame:
    """The kind of frame that these hubs make."""
    near = max(1, round(ENDS * n))
    if any(j < near for j in hubs) and any(j >= n - near for j in hubs):
        return "bidirectional"
    return "centralised" if len(hubs) == 1 else "distributed"


def count_components(joined: Tensor) -> int:
    """β₀ of a graph, by joining the parents of every edge."""
    parent = list(range(len(joined)))

    def root(v: int) -> int:
        while parent[v] != v:
            parent[v] = parent[parent[v]]
            v = parent[v]
        return v

    for i, j in joined.triu(1).nonzero().tolist():
        parent[root(i)] = root(j)
    return len({root(v) for v in range(len(joined))})


def star_and_ring() -> tuple[Tensor, Tensor]:
    """A star of 7: centralised, second eigenvalue 1, no cycle. A ring of 6: none of it, 2 − 2 cos 60°, one cycle."""
    star, ring = torch.zeros(7, 7), torch.eye(6).roll(1, 1)
    star[:, 0] = 1
    found = [geometry(star), geometry(ring)]
    numbers = [[g.centralisation, g.fiedler, g.components, g.cycles, len(g.hubs)] for g in found]
    return torch.tensor(numbers, dtype=torch.float64), torch.tensor([[1.0, 1, 1, 0, 1], [0, 1, 1, 1, 0]]).double()
