"""Whether a model can be routed: what mass of its attention a router's blocks hold, before anything is swapped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.hosts.softmax_call import AttentionMap
from regard.hosts.watch import watch
from regard.mechanisms.sparse.routed import RoutedBlocks
from regard.patterns.choice import Choice
from regard.routers.blocks import Oracle, Random


@dataclass(frozen=True)
class Held:
    """The mean share of its mass that a head's queries have in the blocks chosen for them.

    Args:
        layer, head: whose. router: in the blocks of the router asked about. oracle, random: in those with the most
            mass, and in blocks by chance, of the same budget and with the same ones forced.
    """

    layer: int
    head: int
    router: float
    oracle: float
    random: float


@torch.no_grad()
def route_report(
    model: Any,
    tokenizer: Any,
    text: str,
    score: str = "middle",
    block: int = 8,
    budget: int = 32,
    length: int = 2048,
    rows: int = 128,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> tuple[list[Held], float]:
    """For each layer and head, the mass in a router's blocks, in the best ones and in random ones; and their density.

    The density is the share of visible keys that the chosen blocks are. The model itself is not changed: it is watched
    over the first ``length`` tokens of the text, and queries of the second half are asked, ``rows`` of them.

    Args:
        score, block, budget: of `RoutedBlocks`, whose first, previous and own block are forced.
        progress: called with what is being measured, how many of the layers are, and of how many.

    Raises:
        ValueError: an unknown score, a text of fewer tokens than the budget's keys, a layer that is not plain causal
            self-attention.
    """
    router = RoutedBlocks(score, block, budget).router
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])[:length]
    if len(ids) <= block * budget:
        raise wrong("text", f"{len(ids)} tokens", f"more than the {block * budget} keys of the budget")
    with watch(model, keep=math.inf) as session:
        model(input_ids=ids[None].to(next(model.parameters()).device), use_cache=False)
    routers = {"router": router, "oracle": Oracle(block, budget), "random": Random(block, budget)}
    some = torch.linspace(len(ids) // 2, len(ids) - 1, min(rows, len(ids) // 2)).long().unique()
    found, density = [], 0.0
    for layer in session.layers:
        progress(f"layer {layer.index}", layer.index, len(session.layers))
        source = session.maps[layer.index]
        if not isinstance(source, AttentionMap) or not layer.causal or layer.window or layer.softcap or layer.sinks:
            raise wrong("model", f"layer {layer.index}, {layer.mechanism}", "plain causal softmax attention in all")
        masses = block_masses(source, some, block)
        shares = {}
        for name, of in routers.items():
            choice = of(source.call.q[:, :, some], source.call.k, of.rows(some[None], len(ids), True))
            shares[name] = (masses * choice.mask).sum(-1).mean((0, 2))
            density = kept(choice, some) if name == "router" else density
        found += [
            Held(layer.index, head, *(shares[name][head].item() for name in routers)) for head in range(layer.heads)
        ]
    return found, density


def block_masses(source: AttentionMap, rows: Tensor, block: int) -> Tensor:
    """``(batch, heads, rows, blocks)``: how much of each query's attention every block of keys has."""
    strip = source.strip(rows)
    weights = torch.nn.functional.pad(strip.weights, (strip.start, 0))
    more = source.call.m - weights.shape[3]
    weights = torch.nn.functional.pad(weights, (0, more + -source.call.m % block))
    return weights.unflatten(3, (-1, block)).sum(-1)


def kept(choice: Choice, rows: Tensor) -> float:
    """The share of visible keys that the chosen blocks are, over all queries."""
    seen = choice.spread().sum(-1).double().mean((0, 1))
    return (seen.sum() / (rows + 1).sum()).item()
