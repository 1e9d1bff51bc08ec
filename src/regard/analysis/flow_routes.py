"""Information flow routes: which heads, positions and networks a token's last state is made of, walked down from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Head, Result
from regard.analysis.flow import WatchedMaps
from regard.analysis.weights import HeadWeights, head_weights
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by
from regard.edits.trace import Site, Trace
from regard.hosts.attach import attach

LEAST = 1e-5
"""Of a proximity, as in the authors' code."""


@dataclass(frozen=True, order=True)
class Edge:
    """What one state is made of, in part.

    Args:
        layer: of the block. part: ``attn``, ``mlp`` or ``resid``, what stays as it was. to, source: slots. head: of
            attention. weight: share of the state.
    """

    layer: int
    part: str
    to: int
    source: int
    head: int | None
    weight: float


@dataclass(frozen=True)
class Routes(Result):
    """The edges from a threshold up that lead to some tokens.

    Args:
        tokens: their slots. threshold: τ. edges: from the top down.
    """

    tokens: tuple[int, ...]
    threshold: float
    edges: tuple[Edge, ...]
    name = "routes"

    def merge(self, other: Routes) -> Routes:
        """The edges that lead to the tokens of both.

        Raises:
            ValueError: another threshold.
        """
        if self.threshold != other.threshold:
            raise wrong("other", f"threshold {other.threshold}", f"{self.threshold}")
        edges = sorted(set(self.edges) | set(other.edges), key=lambda edge: (-edge.layer, edge))
        return replace(self, tokens=tuple(sorted({*self.tokens, *other.tokens})), edges=tuple(edges))

    @property
    def heads(self) -> dict[Head, float]:
        """The largest weight of each head that has an edge."""
        found: dict[Head, float] = {}
        for edge in self.edges:
            if edge.head is not None:
                found[edge.layer, edge.head] = max(edge.weight, found.get((edge.layer, edge.head), 0))
        return dict(sorted(found.items(), key=lambda entry: -entry[1]))

    def table(self) -> list[dict[str, Any]]:
        return [vars(edge) for edge in self.edges]


@published(
    "flow_routes",
    family="observe",
    kind="analysis",
    row=173,
    title="Information Flow Routes: Automatically Interpreting Language Models at Scale",
    arxiv="2403.00824",
    year=2024,
    fidelity="authors' code",
    claim=(
        Claim(
            "the routes of a repeated token hold its induction heads, and heads of the previous token below them",
            cells="routes.found",
            holds="routes.hold_the_circuit",
        ),
        Claim(
            "cutting the kept edges costs the token at least five times as much as as many random ones",
            cells="routes.found",
            holds="routes.kept_edges_matter",
        ),
    ),
)
@shown_by(lambda: [Sample("by hand", shares, {"known": by_hand})])
def shares(whole: Tensor, parts: Tensor) -> Tensor:
    """What share of a state each of its parts is, ``(parts,)``, by how much nearer it is to the state than nothing.

        p_c = max(10⁻⁵, ‖y‖₁ − ‖y − c‖₁),   share_c = p_c / Σ p

    Args:
        whole: y, ``(channels,)``. parts: c, ``(parts, channels)``, which add up to it.

    The parts of a feed-forward network by neuron: `route_neurons.neurons`.

    Paper: Ferrando and Voita, arXiv 2403.00824; the norm and the least as in the authors' code.
    """
    near = (whole.abs().sum() - (whole - parts).abs().sum(-1)).clamp(min=LEAST)
    return near / near.sum()


def by_hand() -> tuple[Tensor, Tensor]:
    """y = (3, 1) of (2, 0), (2, 1) and (−1, 0): near by 2, 3 and not at all."""
    parts = torch.tensor([[2.0, 0.0], [2.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    near = torch.tensor([2.0, 3.0, LEAST], dtype=torch.float64)
    return shares(parts.sum(0), parts), near / near.sum()


class TracedStates:
    """The states of one pass over a text, and what each head adds to them: memory grows with the length.

    Args:
        model: a Transformers model. ids: ``(n,)``.
    """

    def __init__(self, model: Any, ids: Tensor) -> None:
        self.maps, trace = WatchedMaps(model, ids), Trace("resid", "attn", "mlp", "v")
        with attach(model, edits=[trace]), torch.no_grad():
            model(input_ids=ids[None].to(model.device), use_cache=False)
        self.weights: list[HeadWeights] = head_weights(model)
        self.trace, self.layers, self.n = trace, self.maps.layers, len(ids)

    def state(self, part: Site, layer: int, slot: int) -> Tensor:
        """``(channels,)`` float32: what comes into a block, or what one of its parts adds."""
        return self.trace.get(part, layer)[0, slot].float()

    def parts(self, layer: int, slot: int) -> tuple[Tensor, int]:
        """``(A_ij W_O v_j (heads, keys, channels), first key)``: what each head takes from each token."""
        weights, start = self.maps.rows(layer, torch.tensor([slot]))
        of, weights = self.weights[layer], weights[:, 0]
        values = of.shared(self.trace.get("v", layer)[0, :, start : start + weights.shape[1]]).float()
        return torch.einsum("hj,hje,hce->hjc", weights.float(), values, of.o.float()), start


def routes(model: Any, ids: Tensor, to: Sequence[int] = (-1,), threshold: float = 0.04) -> Routes:
    """The edges from ``threshold`` up by which tokens' last states came about, walked down from the top.

    Args:
        model: a Transformers model with known weights of heads. ids: ``(n,)``. to: slots, -1 for the last.
        threshold: τ; the lower, the more edges.

    Raises:
        ValueError: a threshold outside of 0 to 1, or tokens that are not there.
    """
    if not 0 < threshold < 1:
        raise wrong("threshold", str(threshold), "a share between 0 and 1")
    if not to or any(not -len(ids) <= slot < len(ids) for slot in to):
        raise wrong("to", f"{list(to)}", f"some of the {len(ids)} tokens")
    states, found = TracedStates(model, ids), list[Edge]()
    nodes = {slot % len(ids) for slot in to}
    for layer in reversed(range(states.layers)):
        below = set[int]()
        for slot in sorted(nodes):
            edges = list(edges_of(states, layer, slot, threshold))
            found += edges
            below |= {edge.source for edge in edges}
        nodes = below
    return Routes(tuple(sorted({slot % len(ids) for slot in to})), threshold, tuple(found))


def edges_of(states: TracedStates, layer: int, slot: int, threshold: float) -> Iterator[Edge]:
    """The edges into the state that a block leaves at a slot, and into that between its two parts."""
    before, attn, mlp = (states.state(part, layer, slot) for part in ("resid", "attn", "mlp"))
    middle = before + attn
    network = float(shares(middle + mlp, torch.stack([mlp, middle]))[0])
    if network > threshold:
        yield Edge(layer, "mlp", slot, slot, None, network)
    heads, start = states.parts(layer, slot)
    weights = shares(middle, torch.cat([heads.flatten(0, 1), before[None]]))
    if float(weights[-1]) > threshold:
        yield Edge(layer, "resid", slot, slot, None, float(weights[-1]))
    for head, key in (weights[:-1].view(heads.shape[:2]) > threshold).nonzero().tolist():
        yield Edge(layer, "attn", slot, start + key, head, float(weights[:-1].view(heads.shape[:2])[head, key]))
