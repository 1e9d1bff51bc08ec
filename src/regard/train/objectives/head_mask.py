"""HeadMask: some heads of every layer are silent in each step, so that the others learn too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from transformers import PreTrainedModel

from regard.core.atlas import Claim, published
from regard.core.edit import Edit, Place
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.edits.trace import Trace
from regard.hosts.steer import steer
from regard.train.objective import Batch, Objective, cross_entropy, run


@published(
    "head_mask",
    family="training",
    kind="objective",
    row=317,
    title="Alleviating the Inequality of Attention Heads for Neural Machine Translation",
    arxiv="2009.09672",
    year=2020,
    fidelity="hand values",
    claim=Claim(
        "heads matter more evenly, no worse translations, and the worst single head costs less: words to words",
        cells="equal_heads.masked",
        holds="equal_heads.evener",
    ),
)
class HeadMask(Objective):
    """The plain loss while some heads of every attention give zeros; all heads speak once it is trained.

        z_h ← 0 for h in M,   M: ``count`` heads of each layer, drawn anew or those of the largest I_h
        I_h = mean over texts of |Σ_tokens z_h · ∂L/∂z_h|

    Args:
        count: heads of each layer. by: ``"random"`` draws them (Mask-Rand); ``"importance"`` takes those that matter
            most for the batch (Mask-Imp), which takes one more pass forward and backward.

    Raises:
        ValueError: another way; while it trains, more heads than a layer has, or all of them.

    Paper: Sun et al., arXiv 2009.09672, of which the abstract was at hand; I as in Michel et al., arXiv 1905.10650.
    """

    dial: ClassVar[tuple[str, float] | None] = ("count", 0)

    def __init__(self, count: int = 1, by: Literal["random", "importance"] = "random") -> None:
        if count < 0:
            raise wrong("count", str(count), "a number of heads from 0 on")
        if by not in ("random", "importance"):
            raise wrong("by", repr(by), "'random' or 'importance'")
        self.count, self.by = count, by

    def loss(self, model: PreTrainedModel, batch: Batch, generator: Generator) -> Tensor:
        important = importance(model, batch) if self.by == "importance" else None
        with steer(model, Silenced(self.count, generator, important)):
            return cross_entropy(model, batch)

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("random", cls(2)), Sample("important", cls(1, "importance"))]


def importance(model: PreTrainedModel, batch: Batch) -> dict[int, Tensor]:
    """I by layer, ``(heads,)``: how much the loss would change with each head's output."""
    with torch.enable_grad(), steer(model, trace := Trace("z")):
        logits = run(model, batch).logits[:, :-1]
        targets = batch.targets[:, 1:]
        each = torch.nn.functional.cross_entropy(logits[targets].float(), batch.ids[:, 1:][targets], reduction="sum")
    held = {layer: trace.get("z", layer) for _, layer in trace.kept}
    gradients = torch.autograd.grad(each, list(held.values()))
    found = {}
    for (layer, z), gradient in zip(held.items(), gradients, strict=True):
        real = batch.real[:, None, :, None]
        found[layer] = (z.detach() * gradient * real).sum((2, 3)).abs().mean(0)
    return found


class Silenced(Edit):
    """Some heads of each layer give zeros.

    Args:
        count: how many. generator: draws them where nothing is ``important``, by layer ``(heads,)``.
    """

    def __init__(self, count: int, generator: Generator, important: Mapping[int, Tensor] | None = None) -> None:
        super().__init__()
        self.count, self.generator, self.important = count, generator, important
        self.chosen: dict[int, Sequence[int]] = {}

    def heads(self, z: Tensor, place: Place) -> Tensor:
        if self.count >= place.heads:
            raise wrong("count", str(self.count), f"fewer than the {place.heads} heads of layer {place.layer}")
        if place.layer not in self.chosen:
            if self.important is None:
                drawn = torch.randperm(place.heads, generator=self.generator)[: self.count]
            else:
                drawn = self.important[place.layer].topk(self.count).indices
            self.chosen[place.layer] = drawn.tolist()
        silent = torch.zeros(place.heads, dtype=torch.bool, device=z.device)
        silent[list(self.chosen[place.layer])] = True
        return z.masked_fill(silent[None, :, None, None], 0)
