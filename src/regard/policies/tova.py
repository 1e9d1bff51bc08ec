"""TOVA: what the newest token does not attend to goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.policy import Policy, View


@published(
    "tova",
    family="cache",
    kind="policy",
    title="Transformers are Multi-State RNNs",
    arxiv="2401.06104",
    year=2024,
    fidelity="third-party code",
    claim=Claim(
        "with the question read, a cache of an eighth finds needles where random tokens and a stream of the same bytes "
        "do not",
        cells="policies.needle",
        holds="policies.finds(policy='tova')",
    ),
)
@dataclass(frozen=True, kw_only=True)
class TOVA(Policy):
    """Keeps what the newest token attends to, on average over all heads of the layer, which so keep the same.

        s_j = mean over all heads of A_ij,   i the newest token

    Shapes: as `core.policy.View`. Cost: one row of A.

    Paper: Oren et al., arXiv 2401.06104. The newest token may go; kvpress keeps it: ``recent=1``.
    """

    @property
    def rows(self) -> int:
        return 1

    def layer_scores(self, views: Sequence[View]) -> Sequence[Tensor]:
        return [torch.stack([self.scores(view) for view in views]).mean(0)] * len(views)

    def scores(self, view: View) -> Tensor:
        return view.weights(slice(-1, None)).mean((0, 1))
