"""Subjects with known answers, for the laws: maps with heads planted in them, and maps of nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import DenseMaps, Head, HeadAnalysis, Prompt
from regard.core.kinds import Sample

LAYERS, HEADS = 2, 3
PLACES: tuple[Head, ...] = ((0, 1), (1, 0))
"""Where heads are planted."""

Targets = Callable[[Tensor], Tensor]
"""From the ids ``(n,)`` of a text to the key ``(n,)`` that a planted head looks at in each row, -1 for none."""


def causal_noise(ids: Tensor, seed: int) -> list[Tensor]:
    """Soft random maps ``(b, heads, n, n)`` of each layer, the same for the same ids."""
    b, n = ids.shape
    generator = torch.Generator().manual_seed(seed + int(ids.sum()))
    hidden = torch.ones(n, n).triu(1).bool()
    return [
        torch.randn(b, HEADS, n, n, generator=generator).masked_fill(hidden, -math.inf).softmax(3)
        for _ in range(LAYERS)
    ]


def planted_maps(targets: Targets, orders: Sequence[Sequence[int]] | None = None) -> Callable[[Tensor], list[Tensor]]:
    """Noise with heads in it that give 0.9 to their targets; the heads of each layer in the given order."""

    def maps(ids: Tensor) -> list[Tensor]:
        every = causal_noise(ids, 3)
        for layer, head in PLACES:
            for row, text in enumerate(ids):
                at = targets(text)
                has = (at >= 0).nonzero()[:, 0]
                every[layer][row, head, has] *= 0.1
                every[layer][row, head, has, at[has]] += 0.9
        return every if orders is None else [a[:, list(order)] for a, order in zip(every, orders, strict=True)]

    return maps


def samples(analysis: HeadAnalysis, data: Sequence[Prompt], targets: Targets, **more: Any) -> list[Sample]:
    """The example of an analysis that reads A: heads that look at ``targets`` are the ones it is to find."""
    given: Mapping[str, Any] = {
        "data": list(data),
        "planted": DenseMaps(planted_maps(targets)),
        "null": DenseMaps(lambda ids: causal_noise(ids, 11)),
        "heads": PLACES,
        "score": analysis.name,
        "threshold": analysis.threshold,
        "permuted": lambda orders: DenseMaps(planted_maps(targets, orders)),
        "other": replace(DenseMaps(planted_maps(targets)), block=5),
        **more,
    }
    return [Sample(type(analysis).__name__, analysis, given)]


def last_plus(ids: Tensor, step: int) -> Tensor:
    """For each row the slot ``step`` after the last earlier one with the same token, -1 where there is none."""
    found = torch.full_like(ids, -1)
    for i, token in enumerate(ids.tolist()):
        earlier = (ids[:i] == token).nonzero()[:, 0]
        if len(earlier) and int(earlier[-1]) + step < i:
            found[i] = int(earlier[-1]) + step
    return found
