"""How well the tokens that one layer attends to most serve the layers after it, measured on a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from regard.core.policy import View, best
from regard.hosts.compress import compress
from regard.policies import Observing
from regard.policies.hylra import HyLRA, planned


@dataclass(frozen=True, kw_only=True)
class Rows(Observing):
    """Notes the newest query's row of A of every layer, the mean over the heads of each kv head.

    Args:
        found: the rows ``(t,)``, by layer.
    """

    found: dict[int, list[Tensor]] = field(default_factory=dict)

    @property
    def keeps(self) -> Mapping[str, float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {"seen": 0.0}  # what is noted at all, so that it is shown every pass

    def observe(self, view: View) -> None:
        self.found.setdefault(view.layer, []).append(view.weights(slice(-1, None))[:, 0].mean(0))


@torch.no_grad()
def reuse_errors(model: PreTrainedModel, texts: Sequence[Tensor], size: int) -> Tensor:
    """E ``(layers, layers)``: the mass that layer r's newest row has outside of the ``size`` best tokens of layer f.

    Args:
        texts: token ids ``(n,)`` each, longer than ``size``; the mean is over them. The diagonal is what a layer itself
            loses with so many tokens.
    """
    total: Tensor | None = None
    for ids in texts:
        rows = Rows()
        with compress(model, rows, 1.0):
            model(input_ids=ids[None].to(model.device), use_cache=True)
        means = torch.stack([torch.stack(rows.found[layer]).mean(0) for layer in sorted(rows.found)])
        chosen = [best(row, size) for row in means]
        errors = torch.stack([1 - means[:, at].sum(1) for at in chosen])
        total = errors if total is None else total + errors
    assert total is not None
    return total / len(texts)


def reusing(model: PreTrainedModel, texts: Sequence[Tensor], size: int, full: int) -> HyLRA:
    """The policy that reads everything in so many ``full`` layers: those of the best plan on these texts."""
    return HyLRA(full=planned(reuse_errors(model, texts, size), full)[0])
