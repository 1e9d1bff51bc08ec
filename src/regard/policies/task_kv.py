"""Task-KV: heads that say something of their own keep everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.policy import View, levelled, sampled
from regard.policies.snapkv import Windowed


@published(
    "task_kv",
    family="cache",
    kind="policy",
    row=326,
    title="Task-KV: Task-aware KV Cache Optimization via Semantic Differentiation of Attention Heads",
    arxiv="2501.15113",
    year=2025,
    fidelity="abstract only",
    claim=(
        Claim(
            "which heads keep everything depends on the task",
            cells="policies.far_heads",
            holds="policies.heads_differ",
        ),
        Claim(
            "at 40% of the cache needles are found as with all of it, and better than in a stream of the same bytes",
            cells="policies.needle",
            holds="policies.as_good_as_full(policy='task_kv')",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class TaskKV(Windowed):
    """The heads whose outputs are far from all heads' mean keep everything, the others sinks, recent and middle tokens.

        d_h = ‖z_h − mean_h z_h‖ of the newest token;   the farthest ``share`` of the kv heads keep all that fits,
        the others the first, the newest, and those in between that the latest queries attend to most

    A kv head is as far as the farthest of the heads that share it. z are the heads' outputs before the output
    projection. Shapes: as `core.policy.View`. Cost: that of SnapKV.

    Args:
        share: of the kv heads, at most. sinks: 4. window: recent tokens, whose queries choose those in between.

    Raises:
        ValueError: a share that is none.

    Paper: He et al., arXiv 2501.15113. The threshold between heads is ours: a share of them, as far as the budget goes.
    """

    share: float = 0.34
    sinks: int = 4
    needs_out: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise wrong("share", str(self.share), "0 to 1, a share of the kv heads")

    def distances(self, views: Sequence[View]) -> Tensor:
        """``(kv_heads,)``: how far each is from the mean."""
        out = torch.stack([view.out for view in views if view.out is not None]).float()
        return (out - out.mean((0, 1))).norm(dim=-1).amax(1)

    def allot(self, views: Sequence[View], scores: Sequence[Tensor], budget: int) -> Sequence[int]:
        heads, total, sizes = len(views), budget * len(views), [view.size for view in views]
        counts = levelled(sizes, total)
        order = self.distances(views).argsort(descending=True).tolist()
        for full in range(1, round(self.share * heads) + 1):
            left, others = total - sum(sizes[head] for head in order[:full]), order[full:]
            if left < len(others) * self.forced:
                break
            shares = dict(zip(others, levelled([sizes[head] for head in others], left), strict=True))
            counts = [shares.get(head, sizes[head]) for head in range(heads)]
        return counts

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"budget": 10}
        return [
            Sample(one.label, one.thing, given)
            for one in sampled(cls(window=2, sinks=1), cls(window=1, sinks=0, share=0.7))
        ]
