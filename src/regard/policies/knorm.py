"""Small keys are attended to: the norm of a key as what it is worth."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.policy import Policy, View


@published(
    "knorm",
    family="cache",
    kind="policy",
    title="A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
    arxiv="2406.11430",
    year=2024,
    fidelity="third-party code",
    claim=Claim(
        "keys of small norm are those that later questions need: a cache of an eighth finds needles better than random "
        "tokens, and better than a stream of the same bytes, with the question unknown",
        cells="policies.needle",
        holds="policies.finds_unasked(policy='knorm')",
    ),
)
@dataclass(frozen=True, kw_only=True)
class KNorm(Policy):
    """Keeps the keys of the smallest norm.

        s_j = −‖k_j‖₂

    Shapes: as `core.policy.View`. Cost: a norm for each key.

    Paper: Devoto et al., arXiv 2406.11430.
    """

    def scores(self, view: View) -> Tensor:
        return -view.keys.float().norm(dim=-1)
