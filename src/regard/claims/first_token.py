"""A model's first token hidden from those behind the eighth: how far a change spreads, and what it costs."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, listed
from regard.claims.limits import TEXT, looked_at
from regard.hosts import small
from regard.hosts.attach import attach
from regard.studies.first_token import hide, spread_of_change

TOKENS, CHANGES = 128, 4


@cache
def read(model: str) -> tuple[Any, Tensor]:
    """A model, and a text of 128 tokens, the first of them that which begins texts where there is one."""
    network, tokenizer = small.load(model)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids[0, : TOKENS - 1]
    begin = tokenizer.bos_token_id
    return network, ids if begin is None else torch.cat([torch.tensor([begin]), ids])


def loss(network: Any, ids: Tensor, edits) -> float:
    """The mean cross-entropy of the tokens behind the 16th."""
    with torch.no_grad(), attach(network, edits=edits):
        logits = network(ids[None]).logits[0, 16:-1]
    return torch.nn.functional.cross_entropy(logits, ids[17:]).item()


@quick(model=["tiny"])
@null(place=[3])
@measured(model=["smollm2"], place=[0])
def spread(model: str, place: int) -> dict[str, float]:
    """The spread in the last third of the layers with a key hidden over that without, and nats it costs."""
    network, ids = read(model)
    edit, plain, hidden = hide(place), [], []
    for changed in range(16, 16 + 12 * CHANGES, 12):
        token = int(ids[changed + 5])
        plain.append(spread_of_change(network, ids, changed, token))
        hidden.append(spread_of_change(network, ids, changed, token, [edit]))
    late = 2 * len(plain[0]) // 3
    ratio = sum(sum(row[late:]) for row in hidden) / sum(sum(row[late:]) for row in plain)
    return {"ratio": ratio, "cost": loss(network, ids, [edit]) - loss(network, ids, [])}


def spreads_twice(found: Figures) -> Finding:
    """At least, and costs half a nat."""
    ratios, costs = found("ratio"), found("cost")
    figure = f"spread in late layers {listed(ratios, '.2f')} times, loss {listed(costs, '+.2f')} nats"
    return Finding.of(f"key {found('place')[0]} hidden: {figure}", min(ratios) >= 2, min(costs) >= 0.5)


@quick(model=["tiny"])
@null(place=[3])
@measured(model=["smollm2"], place=[0])
def sinks(model: str, place: int) -> dict[str, float]:
    """The shares of heads whose queries behind the eighth give one key more than 0.3, and than 0.8, on average."""
    received = torch.cat([a[:, 8:, place].mean(-1) for a in looked_at(model)[0]])
    return {f"above {least}": (received > least).double().mean().item() for least in (0.3, 0.8)}


def are_sinks(found: Figures) -> Finding:
    """More than 30% at 0.3."""
    low, high = found("above 0.3"), found("above 0.8")
    return Finding.of(
        f"key {found('place')[0]}: {low[0]:.0%} of heads above 0.3, {high[0]:.0%} above 0.8", min(low) > 0.3
    )
