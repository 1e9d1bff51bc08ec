"""Ada-KV: the heads of a layer share its budget by what their entries are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.policy import Policy, View, best, sampled
from regard.policies.snapkv import SnapKV


@published(
    "adakv",
    family="cache",
    kind="policy",
    title="Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference",
    arxiv="2407.11550",
    year=2024,
    fidelity="third-party code",
    claim=(
        Claim(
            "heads that share a layer's budget find needles at least as well as heads with as much each",
            cells="policies.needle",
            holds="policies.no_worse(policy='adakv', than='snapkv')",
        ),
        Claim(
            "heads that keep 126, 512 and 4,096 tokens are decoded in half of the full cache's time, and a budget for "
            "all costs no time",
            cells="cache_time.decoding",
            holds="cache_time.half_the_time",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class AdaKV(Policy):
    """Another policy's scores, the best of all kv heads of a layer together: a head keeps as many as it has among them.

        each head keeps its best ⌊α B⌋;   the rest of Σ_h B are the best of all heads' others

    Shapes: as `core.policy.View`. Cost: that of ``of``.

    Args:
        of: the policy whose scores and budgets are meant. alpha: α, the share of its budget that a head is sure of.

    Raises:
        ValueError: a share that is none.

    Paper: Feng et al., arXiv 2407.11550: α 0.2.
    """

    of: Policy = field(default_factory=SnapKV)
    alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise wrong("alpha", str(self.alpha), "0 to 1, a share of the budget")

    @property
    def keeps(self) -> Mapping[str, float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.of.keeps

    @property
    def needs_out(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.of.needs_out

    @property
    def needs_states(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.of.needs_states

    @property
    def moves(self) -> bool:
        return self.of.moves

    def moved(self, kept: Tensor, size: int) -> Tensor:
        return self.of.moved(kept, size)

    @property
    def resumable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.of.resumable

    @property
    def rows(self) -> int:
        return self.of.rows

    @property
    def forced(self) -> int:
        return max(super().forced, self.of.forced)

    def budget(self, size: int, layer: int, layers: int, n: int) -> int:
        return self.of.budget(size, layer, layers, n)

    def observe(self, view: View) -> None:
        self.of.observe(view)

    def scores(self, view: View) -> Tensor:
        return self.of.scores(view).masked_fill(self.of.protected(view), torch.inf)

    def allot(self, views: Sequence[View], scores: Sequence[Tensor], budget: int) -> Sequence[int]:
        pooled = []
        for found in scores:
            sure = found.clone()
            sure[best(found, int(self.alpha * budget))] = torch.inf
            pooled.append(sure)
        heads = torch.cat([torch.full((len(found),), head) for head, found in enumerate(pooled)])
        chosen = heads[best(torch.cat(pooled), budget * len(views)).cpu()]
        counts = torch.bincount(chosen, minlength=len(views)).tolist()
        counts[0] += budget * len(views) - sum(counts)  # fewer entries than may be kept
        return counts

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return sampled(cls(of=SnapKV(window=2, kernel=3), alpha=0.5, every=2))
