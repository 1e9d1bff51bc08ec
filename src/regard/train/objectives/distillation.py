"""Distillation into hybrid models: which layers keep softmax attention is told by what their return makes of the KL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.frozen import frozen
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.mechanism import accumulate_dtype
from regard.core.spec import parse_layers
from regard.networks import LM
from regard.train.fit import Recipe, fit
from regard.train.objective import Batch, Objective, entropy_of, run, tune
from regard.train.objectives.context_indicator import small_probe

Batches = Callable[[Generator], Batch]


@published(
    "kl_layer_selection",
    family="training",
    kind="objective",
    row=314,
    title="Distilling to Hybrid Attention Models via KL-Guided Layer Selection",
    arxiv="2512.20569",
    year=2025,
    missing="a rate of its own for attention in the second stage; conversion of Transformers models",
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
    time is put back, the KL is made smaller for a while, and layers are ranked by how small it becomes.

    Args:
        teacher: of the same vocabulary; it is not trained. weight: w, from 0 to 1; the authors' second stage has 1.

    Raises:
        ValueError: a weight outside of [0, 1]; while it trains, a teacher of another vocabulary.

    Paper: arXiv 2512.20569; the stages as in RADLADS, arXiv 2505.03005.
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


def hybrid(source: LM, layers: Sequence[str], *others: tuple[LM, Sequence[int]]) -> LM:
    """A model of these ``layers``, with all weights of ``source`` that have the same name and shape in it.

    Args:
        others: models, and the layers whose attention is theirs.

    Raises:
        ValueError: more or fewer layers than the source has.
    """
    if len(layers) != source.config.depth:
        raise wrong("layers", f"{len(layers)} layers", f"the source's {source.config.depth}")
    found = LM(replace(source.config, layers=", ".join(layers)), seed=0)
    copied(source.state_dict(), found)
    for model, places in others:
        held = {f"blocks.{place}.attention." for place in places}
        copied({n: value for n, value in model.state_dict().items() if any(map(n.startswith, held))}, found)
    return found


def copied(weights: dict[str, Tensor], into: LM) -> None:
    """Loads those of the weights that have the same name and shape in a model."""
    own = into.state_dict()
    same = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    into.load_state_dict(own | same)


def alignment(teacher: LM, student: LM, batch: Batch) -> Tensor:
    """The mean over layers of the mean squared difference of attentions that are given the teacher's states."""
    layout, each = Layout(causal=True, key_mask=batch.mask), []
    x = teacher.embed(batch.ids)
    for own, other in zip(teacher.layers, student.layers, strict=True):
        with torch.no_grad():
            given = own.norms[0](x)
            wanted, x = own.attention(given, layout), own(x, layout)
        each.append(F.mse_loss(other.attention(given, layout)[batch.real], wanted[batch.real]))
    return torch.stack(each).mean()


def aligned(teacher: LM, student: LM, batches: Batches, recipe: Recipe) -> LM:
    """The student, its attentions trained towards the teacher's and nothing else: the first stage."""
    inside = {id(parameter) for block in student.layers for parameter in block.attention.parameters()}
    kept = [parameter for parameter in student.parameters() if id(parameter) not in inside]

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        return alignment(teacher, student, batches(generator))

    with frozen(kept):
        return fit(student, loss, recipe)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Selection:
    """Which layers keep softmax attention.

    Args:
        layers: those, ascending. divergences: by layer ``(layers,)``, the KL with that layer's softmax alone put back.
        linear: the all-linear student after the first stage.
    """

    layers: list[int]
    divergences: Tensor
    linear: LM


def select(
    teacher: LM,
    mechanism: str,
    count: int,
    batches: Batches,
    first: Recipe,
    second: Recipe,
    held_out: Sequence[Batch],
) -> Selection:
    """Aligns an all-linear student, puts back one softmax layer at a time, and takes the ``count`` of the least KL.

    Args:
        mechanism: in the place of softmax attention, as in a configuration. first, second: of the stages; the second is
            run once for each layer. held_out: what the KL is measured on.

    Raises:
        ValueError: no layer, or more than there are.
    """
    texts = [str(layer) for layer in parse_layers(teacher.config.layers)]
    if not 0 < count <= len(texts):
        raise wrong("count", str(count), f"1 to {len(texts)} layers")
    linear = aligned(teacher, hybrid(teacher, [mechanism] * len(texts)), batches, first)
    found = []
    for layer in range(len(texts)):
        student = restored(teacher, linear, [layer])
        tune(student, Distillation(teacher), batches, second)
        found.append(measured_divergence(teacher, student, held_out))
    values = torch.tensor(found)
    return Selection(sorted(values.argsort(stable=True)[:count].tolist()), values, linear)


def restored(teacher: LM, linear: LM, layers: Sequence[int]) -> LM:
    """The all-linear student with the teacher's softmax attention put back into some layers."""
    softmax, other = ([str(layer) for layer in parse_layers(model.config.layers)] for model in (teacher, linear))
    texts = [softmax[place] if place in layers else text for place, text in enumerate(other)]
    return hybrid(linear, texts, (teacher, layers))


@torch.no_grad()
def measured_divergence(teacher: LM, student: LM, batches: Sequence[Batch]) -> float:
    """The mean KL of the student's predictions from the teacher's."""
    apart = [Distillation(teacher).loss(student, batch, Generator()) for batch in batches]
    return torch.stack(apart).mean().item()
