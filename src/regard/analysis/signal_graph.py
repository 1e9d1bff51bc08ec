"""Circuits of signals: which earlier heads wrote the few directions through which a head attends to a token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from regard.analysis.base import Head, Result
from regard.analysis.flow import WatchedMaps
from regard.analysis.sparse_decomposition import Decomposition, plain_products, singular
from regard.analysis.weights import gain_of, head_weights
from regard.core.errors import wrong
from regard.edits.trace import Trace
from regard.hosts.attach import attach

FIRING = 0.5
"""Weight from which a head is said to fire on a pair, as in the authors' code."""
TRACED = 0.7
"""Share of what all earlier heads wrote that the traced ones have."""
Pair = tuple[int, int, int, int]
"""``(layer, head, query, key)``."""


@dataclass(frozen=True, order=True)
class Written:
    """What one earlier head wrote for one pair.

    Args:
        layer, head, query, key: of the pair. side: the token that was written to, ``query`` or ``key``. writer: the
            earlier head, ``(layer, head)``. weight: how much of the used directions it wrote.
    """

    layer: int
    head: int
    query: int
    key: int
    side: str
    writer: Head
    weight: float


@dataclass(frozen=True)
class SignalGraph(Result):
    """The graphs of some texts.

    Args:
        found: a tuple of edges for each text. firing: pairs that heads fire on, by text.
    """

    found: tuple[tuple[Written, ...], ...]
    firing: tuple[int, ...]
    name = "signal_graph"

    def merge(self, other: SignalGraph) -> SignalGraph:
        """Those of the texts of both."""
        return replace(self, found=self.found + other.found, firing=self.firing + other.firing)

    def between(self) -> list[tuple[Head, Head, str, float, int]]:
        """``(writer, reader, side, mean weight, texts)`` of each two heads, those of most texts first."""
        totals, times = Counter[tuple[Head, Head, str]](), Counter[tuple[Head, Head, str]]()
        texts: dict[tuple[Head, Head, str], set[int]] = {}
        for text, edges in enumerate(self.found):
            for edge in edges:
                pair = (edge.writer, (edge.layer, edge.head), edge.side)
                totals[pair] += edge.weight  # pyright: ignore[reportArgumentType]
                times[pair] += 1
                texts.setdefault(pair, set()).add(text)
        means = [(*pair, totals[pair] / times[pair], len(texts[pair])) for pair in texts]
        return sorted(means, key=lambda one: (-one[4], -one[3], one[:3]))

    def table(self) -> list[dict[str, Any]]:
        rows = [(text, vars(edge)) for text, edges in enumerate(self.found) for edge in edges]
        return [{"text": text, **row, "writer": list(row["writer"])} for text, row in rows]


class Signals:
    """The states of one pass, what each head wrote into them, and which pairs heads fire on.

    Args:
        model: a Transformers model with known weights of heads and rotary positions. ids: ``(n,)``.

    Raises:
        ValueError: see `sparse_decomposition.decompose`.
    """

    def __init__(self, model: Any, ids: Tensor) -> None:
        plain_products(model)
        self.model, self.weights, self.maps = model, head_weights(model), WatchedMaps(model, ids)
        trace = Trace("resid", "z")
        with attach(model, edits=[trace]), torch.no_grad():
            model(input_ids=ids[None].to(model.device), use_cache=False)
        layers = range(len(self.weights))
        self.states = [trace.get("resid", layer)[0].double() for layer in layers]
        self.written = [
            torch.einsum("hne,hce->hnc", trace.get("z", layer)[0].double(), self.weights[layer].o.double())
            for layer in layers
        ]
        self.firing = [self.fired(layer, len(ids)) for layer in layers]

    def fired(self, layer: int, n: int) -> set[tuple[int, int, int]]:
        """``(head, query, key)`` with half of the weight or more; the first token's own are none."""
        weights, start = self.maps.rows(layer, torch.arange(n))
        return {(h, i, start + j) for h, i, j in (weights >= FIRING).nonzero().tolist() if start + j > 0}

    @torch.no_grad()
    def writers(self, pair: Pair) -> tuple[Tensor, Tensor] | None:
        """``(into the query, into the key)``, ``(layers below, heads)`` each, of a pair; None for a negative score.

            w_h = Σ_k sign(x_i · u_k) √σ_k (u_k or v_k) · ñ(o_h),   k among the fewest terms that reach the score

        o_h is what head h added to the token's state, ñ the norm before the reader with the state's own scale.
        """
        layer, head, query, key = pair
        of = self.weights[layer]
        u, sizes, v = singular(self.model, of, head, query, key)
        x, y = of.norm(self.states[layer][[query, key]].to(of.q.dtype)).double()
        found = Decomposition(layer, head, query, key, sizes * (x @ u) / of.q.shape[1] ** 0.5, v, y)
        used = found.fewest()
        if not used:
            return None
        signs = (x @ u[:, used]).sign() * sizes[used].sqrt()
        below = torch.stack([written[:, [query, key]] for written in self.written[:layer]])  # (layers, heads, 2, c)
        told = [scaled(of.norm, self.states[layer][at], below[:, :, side]) for side, at in enumerate((query, key))]
        return told[0] @ (u[:, used] @ signs), told[1] @ (signs @ v[used])


def scaled(norm: nn.Module, state: Tensor, parts: Tensor) -> Tensor:
    """Parts ``(…, c)`` of a state ``(c,)`` as its norm scales them, its mean taken off where the norm does that."""
    centred = isinstance(norm, nn.LayerNorm)
    state, parts = (x - x.mean(-1, keepdim=True) if centred else x for x in (state, parts))
    epsilon = next((getattr(norm, name) for name in ("variance_epsilon", "eps", "epsilon") if hasattr(norm, name)), 0.0)
    gain = gain_of(norm, state.shape[-1]).double()
    return parts * gain / (state.square().mean() + epsilon).sqrt()


def signal_graph(model: Any, ids: Tensor, roots: Sequence[Pair], share: float = TRACED) -> SignalGraph:
    """The heads that wrote what some pairs are scored by, those that wrote for these heads' own pairs, and so on.

    Of each pair the earlier heads are taken that together wrote ``share`` of what all did, into the query's and into
    the key's state, the largest first. Of such a head the pairs are gone on with that it fires on, with 0.5 of its
    weight or more, from that token; the first token is never traced.

    Args:
        model: a Transformers model with known weights of heads and rotary positions. ids: ``(n,)``. roots: pairs
            ``(layer, head, query, key)``; those that do not fire have no edges.

    Raises:
        ValueError: a share outside of 0 to 1, pairs that are not there, or a model that `decompose` refuses.

    Paper: Franco and Crovella, arXiv 2410.00340; weights, thresholds and the walk as in the authors' code, whose models
    have no rotary positions.
    """
    if not 0 < share < 1:
        raise wrong("share", str(share), "above 0 and below 1")
    signals = Signals(model, ids)
    heads = [len(of.q) for of in signals.weights]
    for layer, head, query, key in roots:
        if not (0 <= layer < len(heads) and 0 <= head < heads[layer] and 0 <= key <= query < len(ids)):
            raise wrong("roots", f"{(layer, head, query, key)}", "pairs (layer, head, query, key) that are there")
    waiting, seen, edges = list(roots), set[Pair](), list[Written]()
    while waiting:
        pair = waiting.pop()
        layer, head, query, key = pair
        if pair in seen or pair[1:] not in signals.firing[layer] or not layer:
            continue
        seen.add(pair)
        told = signals.writers(pair)
        for side, at, weights in zip(("query", "key"), (query, key), told or (), strict=False):
            for writer in strongest(weights, share):
                edges.append(Written(*pair, side, writer, float(weights[writer])))
                fired = signals.firing[writer[0]]
                waiting += [(*writer, i, j) for h, i, j in fired if (h, i) == (writer[1], at)]
    return SignalGraph((tuple(sorted(edges)),), (sum(map(len, signals.firing)),))


def strongest(weights: Tensor, share: float) -> list[Head]:
    """The heads of the largest weights, until these add up to more than ``share`` of all; ties come with the last."""
    order = weights.flatten().sort(descending=True).values
    over = (order.cumsum(0) > share * order.sum()).nonzero()
    least = order[int(over[0])] if len(over) else order[-1]
    return [(layer, head) for layer, head in (weights >= least).nonzero().tolist()]
