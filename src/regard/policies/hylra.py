"""HyLRA: which layers attend to everything and which reuse a choice, planned for a model beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.policy import Reader, View, best, sampled


@published(
    "hylra",
    family="cache",
    kind="policy",
    row=123,
    title="HyLRA: Hybrid Layer Reuse Attention for Efficient Long-Context Inference",
    arxiv="2602.00777",
    year=2026,
    fidelity="abstract only",
    claim=Claim(
        "with half of the layers or more reusing a choice of a quarter of the tokens, needles are found as with the "
        "full cache, to a point",
        cells="readers.needle",
        holds="readers.reuse_keeps_recall",
    ),
)
@dataclass(frozen=True, kw_only=True)
class HyLRA(Reader):
    """Some layers attend to everything and choose the tokens with the most attention; the next ones reuse the choice.

        T_f = the budget's best of mean over heads of A_ij, in a full layer f;   layers up to the next full one read T_f

    Which layers are full, `planned` says from a profile of the model. Shapes: as `core.policy.View`. Cost: one row of A
    in the full layers.

    Args:
        full: those layers, ascending, the first one among them.

    Raises:
        ValueError: others.

    Paper: Ai et al., arXiv 2602.00777: the profile's error and the plan's objective are ours.
    """

    full: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.full or self.full[0] != 0 or list(self.full) != sorted(set(self.full)):
            raise wrong("full", str(self.full), "ascending layers, 0 the first of them")

    def source(self, layer: int, layers: int) -> int | None:
        return None if layer in self.full else max(full for full in self.full if full < layer)

    def select(self, views: Sequence[View]) -> Sequence[Tensor] | None:
        if views[0].size <= views[0].budget:
            return None
        mean = torch.cat([view.weights(slice(-1, None))[:, 0] for view in views]).mean(0)
        mean[-1] = torch.inf  # the newest token
        return [best(mean, views[0].budget)] * len(views)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return sampled(cls())


def planned(errors: Tensor, count: int) -> tuple[tuple[int, ...], float]:
    """``(the full layers, the summed error of the others)``: the best with so many full layers, by dynamic programming.

        C(l, c) = min over f < l of C(f, c − 1) + Σ_{f < r < l} E_fr

    Args:
        errors: E ``(layers, layers)``, what layer r loses with the choice of layer f. count: full layers, at least one.

    Raises:
        ValueError: more full layers than there are, or none.
    """
    layers = len(errors)
    if not 1 <= count <= layers:
        raise wrong("count", str(count), f"1 to {layers}")
    runs = [[sum(errors[f, r].item() for r in range(f + 1, stop)) for stop in range(layers + 1)] for f in range(layers)]
    plans: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, (0,))}  # by the last full layer
    for _ in range(count - 1):
        plans = {
            layer: min((cost + runs[f][layer], (*plan, layer)) for f, (cost, plan) in plans.items() if f < layer)
            for layer in range(1, layers)
            if any(f < layer for f in plans)
        }
    cost, plan = min((cost + runs[f][layers], plan) for f, (cost, plan) in plans.items())
    return plan, cost
