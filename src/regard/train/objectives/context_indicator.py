"""Conditional tuning: examples whose answers look at the user's text are told apart by an indicator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from regard.core.atlas import Claim, published
from regard.core.edit import Edit, Place, Where
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.hosts.steer import steer
from regard.train.objective import Batch, Objective, cross_entropy, run


@published(
    "context_indicator",
    family="training",
    kind="objective",
    row=293,
    title="On the Loss of Context-awareness in General Instruction Fine-tuning",
    arxiv="2411.02688",
    year=2024,
    fidelity="hand values",
    claim=Claim(
        "tuning on answers that are known by heart loses what contexts say, and with the indicator at least 80% of it "
        "comes back for 2% of the loss: facts that contexts override",
        cells="context_awareness.tuned",
        holds="context_awareness.kept",
    ),
)
class ContextIndicator(Objective):
    """The plain loss on prompts that end with an indicator where the answer depends on the user's text.

        dependency = mean over the answer's tokens of max_h Σ_{j of the user} A_h,tj,   ≥ threshold: with indicator

    A is the probe's, in one layer. At inference the indicator is added to prompts whose context is to count.

    Args:
        indicator: ids of the indicator, which come behind the user's last token. probe: reads the batch; it is not
            trained, and is the model itself before it is tuned. layer: of the probe, the authors' 15 of 22.
            threshold: the authors' 0.6; ∞ adds none.

    The batch marks its tokens: ``"user"``, without template, line breaks and the first token, which the
    authors leave out, and ``"answer"``.

    Raises:
        ValueError: no indicator; while it trains, a batch without these marks, or a text without either.

    Paper: Wang et al., arXiv 2411.02688. Their baseline without training is `edits.Highlight` of the user's tokens,
    with a ``strength`` of −log 0.9: others weigh 0.9 times as much.
    """

    dial: ClassVar[tuple[str, float] | None] = ("threshold", math.inf)

    def __init__(
        self, indicator: Sequence[int], probe: PreTrainedModel, layer: int = 15, threshold: float = 0.6
    ) -> None:
        if not indicator:
            raise wrong("indicator", "no ids", "at least one")
        self.indicator, self.probe, self.layer, self.threshold = list(indicator), probe, layer, threshold

    def loss(self, model: PreTrainedModel, batch: Batch, generator: Generator) -> Tensor:
        depends = dependency(self.probe, batch, self.layer) >= self.threshold
        return cross_entropy(model, indicated(batch, depends, self.indicator))

    @classmethod
    def examples(cls) -> list[Sample]:
        return [
            Sample("some", cls([27, 28], small_probe(), 1, 0.45)),
            Sample("all", cls([28], small_probe(), 0, 0.0)),
        ]


class UserMass(Edit):
    """Reads how much of each row of one layer goes to the user's tokens, and changes nothing.

    Args:
        user: ``(b, n)`` bool. layer: which.
    """

    def __init__(self, user: Tensor, layer: int) -> None:
        super().__init__(Where([layer]))
        self.user = user
        self.read: Tensor | None = None

    def groups(self, place: Place) -> Tensor:
        return self.user[:, None].long()

    def masses(self, m: Tensor, place: Place) -> None:
        whole = m.new_zeros(*m.shape[:2], self.user.shape[1])
        self.read = whole.index_copy(2, place.rows, m[..., 1])


@torch.no_grad()
def dependency(probe: PreTrainedModel, batch: Batch, layer: int = 15) -> Tensor:
    """``(b,)``: how much the answers' tokens attend to the user's, by the best head of each token.

    Raises:
        ValueError: a batch without the marks ``user`` and ``answer``, or a text without such tokens.
    """
    user, answer = (batch.marked(name) & batch.real for name in ("user", "answer"))
    for name, held in (("user", user), ("answer", answer)):
        if not bool(held.any(1).all()):
            raise wrong("batch", f"a text without tokens of {name!r}", "some in every text")
    with steer(probe, reading := UserMass(user, layer)):
        run(probe, batch)
    assert reading.read is not None
    best = reading.read.amax(1)
    return (best * answer).sum(1) / answer.sum(1)


def indicated(batch: Batch, chosen: Tensor, indicator: Sequence[int]) -> Batch:
    """The batch with the indicator behind the last token of the user in the ``chosen (b,)`` texts, the others padded.

    Nothing of the indicator is learned.
    """
    size, rows = len(indicator), []
    fields: dict[str, Tensor] = {"ids": batch.ids, "learned": batch.targets, "mask": batch.real, **(batch.marks or {})}
    for row in range(len(batch.ids)):
        held = {name: field[row] for name, field in fields.items()}
        blank = {name: field.new_zeros(size) for name, field in held.items()}
        if bool(chosen[row]):
            at = int(held["user"].nonzero()[-1]) + 1
            blank |= {"ids": torch.tensor(indicator).to(batch.ids), "mask": torch.ones_like(blank["mask"])}
            rows.append({name: torch.cat([field[:at], blank[name], field[at:]]) for name, field in held.items()})
        else:
            rows.append({name: torch.cat([field, blank[name]]) for name, field in held.items()})
    made: dict[str, Any] = {name: torch.stack([row[name] for row in rows]) for name in fields}
    marks = {name: made[name] for name in batch.marks or {}}
    return replace(batch, ids=made["ids"], learned=made["learned"], mask=made["mask"], marks=marks or None)


def small_probe() -> PreTrainedModel:
    """A Llama of random weights with 29 tokens, sharp enough that texts differ in what their answers look at."""
    sizes: dict[str, Any] = {"hidden_size": 12, "intermediate_size": 17, "num_hidden_layers": 2}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)
        found = LlamaForCausalLM(LlamaConfig(vocab_size=29, max_position_embeddings=64, num_attention_heads=3, **sizes))
        for parameter in found.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return found.eval()
