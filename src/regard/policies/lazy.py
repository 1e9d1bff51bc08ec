"""LazyEviction: tokens that are attended to again and again are kept for as long as they stay away."""

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


@published(
    "lazy_eviction",
    family="cache",
    kind="policy",
    row=295,
    title="LazyEviction: Lagged KV Eviction with Attention Pattern Observation for Efficient Long Reasoning",
    arxiv="2506.15969",
    year=2025,
    fidelity="abstract only",
    claim=Claim(
        "at half of the cache, tokens that are attended to at intervals stay: 90% or more of them, and more than H2O "
        "and TOVA keep",
        cells="policies.recurring",
        holds="policies.keeps_recurring",
    ),
)
@dataclass(frozen=True, kw_only=True)
class LazyEviction(Policy):
    """Evicts now and then, first what has been away for long against the longest interval after which it came back.

        a token fires when A_ij ≥ α;   TS_j its last firing, MRI_j the longest interval between two
        s_j = −(t − TS_j) / MRI_j,   an eviction every W steps, the W newest kept

    A token's first interval begins with itself; one that never came back counts as MRI = 1.
    Shapes: as `core.policy.View`. Cost: all rows of A while the prompt is read, one row a step after that.

    Args:
        alpha: α. every: W. recent: as many as ``every`` if left out.

    Raises:
        ValueError: α that is no share.

    Paper: Zhang et al., arXiv 2506.15969. The form of the score is ours, as is α; A is the mean of the group's heads.
    """

    alpha: float = 0.01
    every: int = 16
    recent: int = -1
    keeps: ClassVar[Mapping[str, float]] = MappingProxyType({"fired": -1.0, "interval": 0.0})

    def __post_init__(self) -> None:
        if self.recent == -1:
            object.__setattr__(self, "recent", self.every)
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise wrong("alpha", str(self.alpha), "above 0, a share of a row")

    def observe(self, view: View) -> None:
        fired, interval = view.stats["fired"], view.stats["interval"]
        fired = torch.where(fired < 0, view.positions.to(fired), fired)
        at = view.query_positions.to(fired)
        for rows in view.blocks():
            own, at = at[: rows.shape[1], None], at[rows.shape[1] :]
            hits = rows.mean(0) >= self.alpha
            times = torch.cat([fired[None], torch.where(hits, own, -1)]).cummax(0).values
            gaps = torch.where(hits, own - times[:-1], 0)
            fired, interval = times[-1].clone(), torch.maximum(interval, gaps.amax(0))
        view.stats["fired"], view.stats["interval"] = fired, interval

    def scores(self, view: View) -> Tensor:
        away = view.seen - 1 - view.stats["fired"]
        return -away / view.stats["interval"].clamp(min=1)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return sampled(cls(alpha=0.2, every=3, recent=2, sinks=1))
