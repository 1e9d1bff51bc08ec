"""H2O: heavy hitters, and the recent tokens."""

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
    "h2o",
    family="cache",
    kind="policy",
    title="H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    arxiv="2306.14048",
    year=2023,
    fidelity="hand values",
    aliases=("heavy_hitters",),
    claim=Claim(
        "a cache of a quarter, half of it heavy hitters, goes on with a text better than one of recent tokens alone",
        cells="policies.streams",
        holds="policies.better_than_recent(policy='h2o')",
    ),
)
@dataclass(frozen=True, kw_only=True)
class H2O(Policy):
    """Keeps the tokens that all queries so far attended to most, and the recent ones.

        s_j = Σ_i mean over the group's heads of A_ij,   kept: ``recent_share`` of the budget newest, the rest by s

    Shapes: as `core.policy.View`. Cost: all rows of A while the prompt is read, one row a step after that.

    Args:
        recent_share: of the budget, for the newest tokens.

    Raises:
        ValueError: a share that is none.

    Paper: Zhang et al., arXiv 2306.14048: half and half. Their code judges for each query head; here those that share
    keys share a choice, by their mean.
    """

    recent_share: float = 0.5
    keeps: ClassVar[Mapping[str, float]] = MappingProxyType({"mass": 0.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.recent_share < 1:
            raise wrong("recent_share", str(self.recent_share), "from 0 up to, but not, 1")

    def observe(self, view: View) -> None:
        view.stats["mass"] = view.stats["mass"] + view.columns().mean(0)

    def scores(self, view: View) -> Tensor:
        recent = view.positions >= view.seen - int(self.recent_share * view.budget)
        return view.stats["mass"].masked_fill(recent, torch.inf)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return sampled(cls(recent_share=0.25, sinks=1, every=3))
