"""Memories of an Attendre layer: what is attended to least, or was so longest ago, goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.policy import Policy, View, sampled

ORDERS = ("lra", "lfa", "fifo")


@published(
    "attendre",
    family="cache",
    kind="policy",
    row=115,
    title="Attendre: Wait To Attend By Retrieval With Evicted Queries in Memory-Based Transformers for Long Context "
    "Processing",
    arxiv="2401.04881",
    year=2024,
    fidelity="abstract only",
    claim=(
        Claim(
            "with a quarter of the cache, evicting what was attended to least recently recalls 20 points more than "
            "evicting the oldest",
            cells="policies.needle",
            holds="policies.above_fifo(order='lra')",
        ),
        Claim(
            "so does evicting what was attended to least often",
            cells="policies.needle",
            holds="policies.above_fifo(order='lfa')",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class Attendre(Policy):
    """Keeps the tokens that queries retrieved most recently (LRA), or most often (LFA), or the newest (FIFO).

        a query retrieves its ``top`` best keys;   s_j = when j was last retrieved, or how often

    A token counts as retrieved when it comes, once. This is the layer's memory of keys; queries that wait in a memory
    of their own, and so see both sides, are the mechanism `wait_to_attend`. Shapes: as `core.policy.View`. Cost: all
    rows of A while the prompt is read, one row a step after that.

    Args:
        order: lra, lfa or fifo. top: keys that a query of a head retrieves.

    Raises:
        ValueError: another order, or nothing that is retrieved.

    Paper: Yang and Hua, arXiv 2401.04881.
    """

    order: str = "lra"
    top: int = 8
    keeps: ClassVar[Mapping[str, float]] = MappingProxyType({"retrieved": -1.0, "times": 0.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ORDERS or self.top < 1:
            raise wrong("order, top", f"{self.order!r}, {self.top}", f"one of {', '.join(ORDERS)}, and at least 1")

    def observe(self, view: View) -> None:
        last, times = view.stats["retrieved"], view.stats["times"]
        last = torch.where(last < 0, view.positions.to(last), last)
        at, top = view.query_positions.to(last), min(self.top, view.size)
        for rows in view.blocks():
            own, at = at[: rows.shape[1]], at[rows.shape[1] :]
            found = rows.topk(top, dim=-1)
            hits = (found.values > 0).flatten()
            index, when = found.indices.flatten()[hits], own[None, :, None].expand_as(found.values).flatten()[hits]
            last = last.scatter_reduce(0, index, when, "amax")
            times = times.index_add(0, index, torch.ones_like(when))
        view.stats["retrieved"], view.stats["times"] = last, times

    def scores(self, view: View) -> Tensor:
        found = {"lra": view.stats["retrieved"], "lfa": view.stats["times"], "fifo": view.positions.float()}
        return found[self.order]

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return sampled(cls(top=3), cls(order="lfa", top=2, recent=2, every=2))
