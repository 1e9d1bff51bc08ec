"""What a token takes of every input through all layers: rollout and maximum flow, walked down from the top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from regard.analysis.base import Result
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by

MOST_FLOW = 512
"""Tokens that maximum flow is computed for at most: a layer has as many edges as pairs."""
CAPACITY = 1 << 24
"""Whole units of an edge of weight one, as SciPy's flow counts in integers: 6e-8 of weight each."""


class Walkable(Protocol):
    """The attention of every layer of one text, rows of it at a time."""

    @property
    def layers(self) -> int: ...

    @property
    def n(self) -> int: ...

    def rows(self, layer: int, rows: Tensor) -> tuple[Tensor, int]:
        """``(A (heads, rows, w), first key)`` of ascending ``rows``."""
        ...


class WatchedMaps:
    """The maps of one watched pass over a text, kept as q, k and log-sum-exp: memory grows with the length.

    Args:
        model: a Transformers model. ids: ``(n,)``.
    """

    def __init__(self, model: Any, ids: Tensor) -> None:
        from regard.hosts.watch import watch

        with watch(model, keep=float("inf")) as session, torch.no_grad():
            model(input_ids=ids[None].to(model.device))
        self.maps, self.n, self.layers = session.maps, len(ids), len(session.layers)
        if any(layer.cross for layer in session.layers) or len(self.maps) < self.layers:
            raise wrong("model", type(model).__name__, "one whose layers all attend to the text itself")

    def rows(self, layer: int, rows: Tensor) -> tuple[Tensor, int]:
        source: Any = self.maps[layer]
        if hasattr(source, "strip"):
            strip = source.strip(rows)
            return strip.weights[0], strip.start
        return source.weights(rows)[0], 0


@dataclass(frozen=True)
class GivenMaps:
    """Maps at hand, ``(layers, heads, n, n)``."""

    maps: Tensor

    @property
    def layers(self) -> int:
        return self.maps.shape[0]

    @property
    def n(self) -> int:
        return self.maps.shape[2]

    def rows(self, layer: int, rows: Tensor) -> tuple[Tensor, int]:
        return self.maps[layer][:, rows], 0


@dataclass(frozen=True)
class Flow(Result):
    """What some tokens take of every input.

    Args:
        way: how it was computed. tokens: that take. values: ``(tokens, n)``.
    """

    way: str
    tokens: tuple[int, ...]
    values: Tensor
    name = "flow"

    def merge(self, other: Flow) -> Flow:
        """The tokens of both.

        Raises:
            ValueError: computed in another way, or of another text.
        """
        if (self.way, self.values.shape[1]) != (other.way, other.values.shape[1]):
            raise wrong("other", f"{other.way} over {other.values.shape[1]} tokens", f"{self.way} over as many as here")
        return replace(self, tokens=self.tokens + other.tokens, values=torch.cat([self.values, other.values]))

    def table(self) -> list[dict[str, Any]]:
        return [
            {"to": to, "from": j, self.way: float(x)} for to, row in zip(self.tokens, self.values, strict=True)
            for j, x in enumerate(row)
        ]  # fmt: skip


def mixed(source: Walkable, layer: int, rows: Tensor, without: Sequence[int]) -> tuple[Tensor, int]:
    """``(½ mean_h A + ½ I (rows, w), first key)``, each row normalised to one; keys of ``without`` give nothing."""
    weights, start = source.rows(layer, rows)
    mean = weights.double().mean(0)
    for key in without:
        if start <= key < start + mean.shape[1]:
            mean[rows != key, key - start] = 0
    mean = mean / mean.sum(1, keepdim=True).clamp(min=torch.finfo(mean.dtype).tiny)
    mean[torch.arange(len(rows)), rows.cpu() - start] += 1
    return mean / mean.sum(1, keepdim=True), start


@published(
    "attention_flow",
    family="observe",
    kind="analysis",
    row=321,
    title="Quantifying Attention Flow in Transformers",
    arxiv="2005.00928",
    year=2020,
    aliases=("attention_rollout", "rollout"),
    fidelity="third-party code",
    claim=(
        Claim(
            "in an encoder that tells the number of a verb rollout and maximum flow follow the effect of a word that "
            "goes better than the last layer's attention does",
            cells="agreement.followed",
            holds="agreement.follow_better",
        ),
        Claim(
            "and in all-MiniLM-L6-v2, an encoder of sentences",
            cells="heads.of_model(model='minilm')",
            holds="heads.follow_better",
        ),
        Claim(
            "and in a causal language model",
            cells="heads.of_model(model='tiny')",
            holds="heads.follow_better",
        ),
    ),
)
@shown_by(lambda: [Sample("rollout", rollout, {"known": planted_path})])
def rollout(source: Walkable, to: Sequence[int], without: Sequence[int] = (), block: int = 256) -> Tensor:
    """Attention rollout: the product of all layers' mixed maps, its rows ``to``: ``(tokens, n)`` float64.

        R = Ã_L · … · Ã_1,   Ã_l = ½ mean_h A_{l,h} + ½ I, rows normalised

    Walked down from the top, a vector for each token: memory is that of a block of rows.

    Args:
        source: the maps. without: keys whose columns are left out and their mass given to the others, such as sinks,
            on which the mass of causal models collapses. block: rows at a time.

    Paper: Abnar and Zuidema, arXiv 2005.00928.
    """
    state = torch.zeros(len(to), source.n, dtype=torch.float64)
    state[torch.arange(len(to)), torch.tensor([token % source.n for token in to])] = 1
    for layer in reversed(range(source.layers)):
        below = torch.zeros_like(state)
        needed = state.any(0).nonzero()[:, 0]
        for rows in needed.split(block):
            part, start = mixed(source, layer, rows, without)
            below[:, start : start + part.shape[1]] += state[:, rows] @ part.cpu()
        state = below
    return state


def planted_path() -> tuple[Tensor, Tensor]:
    """Two layers in which token 4 looks at 3, and 3 at 1: rollout, and ½ · ½ along each way through them."""
    maps = torch.eye(5, dtype=torch.float64).repeat(2, 1, 1, 1)
    maps[1, 0, 4] = torch.eye(5)[3]
    maps[0, 0, 3] = torch.eye(5)[1]
    return rollout(GivenMaps(maps), [4])[0], torch.tensor([0, 0.25, 0, 0.25, 0.5], dtype=torch.float64)


def max_flow(source: Walkable, to: Sequence[int], inputs: Sequence[int] | None = None) -> Tensor:
    """Attention flow: the maximum flow from each token ``to`` of the last layer down to each input, ``(tokens, n)``.

    The graph has a node for every token before each layer and after the last; the edge from token i above a layer to j
    below it has capacity Ã_ij, as in `rollout`.

    Args:
        source: the maps, of at most 512 tokens: every pair of every layer is an edge. inputs: to which; None for all.

    Raises:
        ValueError: a longer text.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import maximum_flow

    n = source.n
    if n > MOST_FLOW:
        raise wrong("to", f"a text of {n:,} tokens", f"at most {MOST_FLOW} for flow; rollout takes any")
    ends: list[np.ndarray] = []
    for layer in range(source.layers):
        part, start = mixed(source, layer, torch.arange(n), ())
        i, j = part.nonzero(as_tuple=True)
        units = (part[i, j] * CAPACITY).round().int()
        above, below = (layer + 1) * n + i, layer * n + j + start
        ends.append(torch.stack([above, below, units]).numpy())
    above, below, units = np.concatenate(ends, axis=1)
    size = (source.layers + 1) * n
    graph = coo_array((units.astype(np.int32), (above, below)), shape=(size, size)).tocsr()
    values = torch.zeros(len(to), n, dtype=torch.float64)
    for row, token in enumerate(to):
        for key in range(n) if inputs is None else inputs:
            found = maximum_flow(graph, source.layers * n + token % n, key % n).flow_value
            values[row, key % n] = found / CAPACITY
    return values


def flow(
    source: Any,
    to: Sequence[int] | int = -1,
    way: Literal["rollout", "maxflow"] = "rollout",
    *,
    ids: Tensor | None = None,
    without: Sequence[int] = (),
) -> Flow:
    """What tokens take of every input through all layers of a model, from its attention maps.

    Args:
        source: a Transformers model, which reads ``ids``, or maps ``(layers, heads, n, n)``. to: the tokens, -1 for the
            last. way: ``"rollout"`` or ``"maxflow"``. without: of rollout, keys that are left out, such as sinks.

    Raises:
        ValueError: no ids with a model, tokens that are not there, keys left out of maximum flow.
    """
    maps = GivenMaps(source) if isinstance(source, Tensor) else source
    if not hasattr(maps, "rows"):
        if ids is None:
            raise wrong("ids", "None", "the text that the model reads")
        maps = WatchedMaps(source, ids)
    tokens = [to] if isinstance(to, int) else list(to)
    if not tokens or any(not -maps.n <= token < maps.n for token in tokens):
        raise wrong("to", f"{tokens}", f"some of the {maps.n} tokens")
    if way not in ("rollout", "maxflow"):
        raise wrong("way", repr(way), "rollout or maxflow")
    if way == "maxflow" and without:
        raise wrong("without", f"{list(without)}", "none: maximum flow is of the whole graph")
    values = rollout(maps, tokens, without) if way == "rollout" else max_flow(maps, tokens)
    return Flow(way, tuple(token % maps.n for token in tokens), values)
