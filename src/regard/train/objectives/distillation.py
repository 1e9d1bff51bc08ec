"""Distillation into hybrid models: which layers keep softmax attention is told by what their return makes of the KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.mechanism import accumulate_dtype
from regard.train.fit import Recipe
from regard.train.hybrids import Batches, aligned, depth_of, linear_of, restored
from regard.train.objective import Batch, Objective, entropy_of, run
from regard.train.objectives.context_indicator import small_probe
from regard.train.rates import Rates, fit_parts


@published(
    "kl_layer_selection",
    family="training",
    kind="objective",
    row=314,
    title="Distilling to Hybrid Attention Models via KL-Guided Layer Selection",
    arxiv="2512.20569",
    year=2025,
    fidelity="hand values",
    claim=Claim(
        "two softmax layers of eight, chosen so, recall ten points more than two at even distances, and 95% of "
        "what the teacher does",
        cells="kl_layers.selected",
        holds="kl_layers.beats_even",
    ),
)
class Distillation(Objective):
    """A student's predictions drawn to a teacher's; `select` chooses by it which layers keep softmax attention.

        (1 − w) · L + w · mean over tokens of KL(p_teacher ‖ p_student)

    Selection (GA-S2): all layers are made linear and aligned to the teacher's attention; then one softmax layer at a
    time is put back, the KL is made smaller for a while, and layers are ranked by how small it becomes. In the authors'
    code attention learns at 1e-4 there and all else at 7e-6: ``Rates(Recipe(steps, 7e-6), (("attn", 1e-4),))``. With a
    Transformers model `regard.linearise` takes the selection, and goes on from the aligned student.

    Args:
        teacher: of the same vocabulary; it is not trained. weight: w, from 0 to 1; the authors' second stage has 1.

    Raises:
        ValueError: a weight outside of [0, 1]; while it trains, a teacher of another vocabulary.

    Paper: arXiv 2512.20569; the stages as in RADLADS, arXiv 2505.03005. Its authors rank by the loss while training,
    here by that of texts held out.
    """

    dial: ClassVar[tuple[str, float] | None] = ("weight", 0.0)

    def __init__(self, teacher: Any, weight: float = 1.0) -> None:
        if not 0 <= weight <= 1:
            raise wrong("weight", str(weight), "0 (the plain loss) to 1 (the teacher alone)")
        self.teacher, self.weight = teacher, weight

    def loss(self, model: Any, batch: Batch, generator: Generator) -> Tensor:
        logits = run(model, batch).logits
        with torch.no_grad():
            wanted = run(self.teacher, batch).logits
        if wanted.shape != logits.shape:
            raise wrong("teacher", f"a vocabulary of {wanted.shape[2]}", f"the model's, of {logits.shape[2]} tokens")
        apart = self.weight * divergence(wanted[batch.real], logits[batch.real])
        return apart if self.weight == 1 else apart + (1 - self.weight) * entropy_of(logits, batch)

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("half", cls(small_probe(), 0.5)), Sample("the teacher alone", cls(small_probe()))]


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """The mean of KL(p ‖ q) in nats over rows of logits ``(n, vocabulary)``, p the teacher's and q the student's."""
    dtype = accumulate_dtype(student.dtype)
    p, q = (logits.to(dtype).log_softmax(-1) for logits in (teacher, student))
    return (p.exp() * (p - q)).sum(-1).mean()


@dataclass(frozen=True)
class Selection:
    """Which layers keep softmax attention.

    Args:
        layers: those, ascending. divergences: by layer ``(layers,)``, the KL with that layer's softmax alone put back.
        linear: the all-linear student after the first stage. mechanism: of its layers.
    """

    layers: list[int]
    divergences: Tensor
    linear: Any
    mechanism: str


def select(
    teacher: Any,
    mechanism: str,
    count: int,
    batches: Batches,
    first: Recipe | Rates,
    second: Recipe | Rates,
    held_out: Sequence[Batch],
) -> Selection:
    """Aligns an all-linear student, puts back one softmax layer at a time, and takes the ``count`` of the least KL.

    Args:
        teacher: an `LM`, or a Transformers language model of the Llama type. mechanism: in the place of softmax
            attention, as in a configuration. first, second: of the stages; the second is run once for each layer.
            held_out: what the KL is measured on.

    Raises:
        ValueError: no layer, as many as there are, or more, and what `hosts.linear_layers.converted` refuses.
    """
    depth = depth_of(teacher)
    if not 0 < count < depth:
        raise wrong("count", str(count), f"1 to {depth - 1} of the {depth} layers")
    linear = aligned(teacher, linear_of(teacher, mechanism), batches, first)
    found = []
    for layer in range(depth):
        student = distilled(teacher, restored(teacher, linear, [layer]), batches, second)
        found.append(measured_divergence(teacher, student, held_out))
    values = torch.tensor(found)
    return Selection(sorted(values.argsort(stable=True)[:count].tolist()), values, linear, mechanism)


def distilled(teacher: Any, student: Any, batches: Batches, recipe: Recipe | Rates) -> Any:
    """The student, all of it trained towards the teacher's predictions: the second stage."""
    objective = Distillation(teacher)

    def loss(ready: Any, generator: Generator) -> Tensor:
        return objective(getattr(ready, "module", ready), batches(generator), generator)

    return fit_parts(student, loss, recipe)


@torch.no_grad()
def measured_divergence(teacher: Any, student: Any, batches: Sequence[Batch]) -> float:
    """The mean KL of the student's predictions from the teacher's."""
    apart = [Distillation(teacher).loss(student, batch, Generator()) for batch in batches]
    return torch.stack(apart).mean().item()
