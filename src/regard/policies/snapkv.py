"""SnapKV: what the last queries of the prompt attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.policy import Policy, View, sampled


@dataclass(frozen=True, kw_only=True)
class Windowed(Policy):
    """The base of those that judge by a window of the latest queries, whose own keys are kept.

        s_j = pool_j( mean over the window's rows i and the group's heads of A_ij )

    Args:
        window: w, how many queries. kernel: of the pooling along the entries, odd; 1 for none. pooling: avg or max.
    """

    window: int = 32
    kernel: int = 5
    pooling: str = "avg"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise wrong("window, kernel", f"{self.window}, {self.kernel}", "at least 1, and odd")
        if self.pooling not in ("avg", "max"):
            raise wrong("pooling", repr(self.pooling), "avg or max")

    @property
    def rows(self) -> int:
        return self.window

    @property
    def forced(self) -> int:
        return self.sinks + max(self.recent, self.window)

    def scores(self, view: View) -> Tensor:
        inside = view.positions >= view.seen - self.window
        seen = view.weights().mean(dim=(0, 1)).masked_fill(inside, 0)
        pool = avg_pool1d if self.pooling == "avg" else max_pool1d
        pooled = pool(seen[None], self.kernel, stride=1, padding=self.kernel // 2)[0]
        return pooled.masked_fill(inside, torch.inf)


@published(
    "snapkv",
    family="cache",
    kind="policy",
    title="SnapKV: LLM Knows What You are Looking for Before Generation",
    arxiv="2404.14469",
    year=2024,
    fidelity="third-party code",
    claim=Claim(
        "with the question in the window a cache of an eighth finds needles where random tokens and a stream of the "
        "same bytes do not",
        cells="policies.needle",
        holds="policies.finds(policy='snapkv')",
    ),
)
@dataclass(frozen=True, kw_only=True)
class SnapKV(Windowed):
    """Keeps what the last queries of the prompt attend to, smoothed along the text, and their own keys.

        s_j = pool_j( mean over the window's rows i and the group's heads of A_ij ),   kept: w newest and the best C − w

    Shapes: as `core.policy.View`. Cost: w rows of A for each layer, once.

    Args:
        window: w. kernel: of the pooling, odd. pooling: avg or max. sinks, recent, every: see `core.policy.Policy`.

    Paper: Li et al., arXiv 2404.14469: window 16 to 64, kernel 5 or 7. Their code keeps a cache for each query head;
    here the heads that share keys share a choice, by their mean.
    """

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return sampled(cls(window=3, kernel=3), cls(window=2, kernel=1, pooling="max", sinks=1))
