"""A person's own language model with linear layers in the place of most of its attention, learned from itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.core.errors import wrong
from regard.hosts.attention_interface import host, label
from regard.hosts.linear_layers import KEY, HostedLayer, LayerPlan, converted
from regard.hosts.sites import blocks_of
from regard.hosts.swap import swap
from regard.train.fit import Recipe, fit
from regard.train.hybrids import attentions, heard, plan_of, restored, states
from regard.train.objective import Batch, cross_entropy
from regard.train.objectives.distillation import Selection
from regard.train.rates import Rates, fit_parts

PERIOD = 4
"""Layers of which the first keeps its softmax attention."""
STAGES = ("layers", "logits")
ALONE, TOGETHER = Recipe(1000, 1e-3), Recipe(1000, 3e-4)
"""The recipes of the stages where nothing is said."""


@dataclass(frozen=True)
class Distillation:
    """How the new layers learn from the model that they are put into.

    Args:
        length, batch: tokens of a training sequence, and sequences of a step. layers: the recipe of the first stage,
            None to leave it out: each block alone learns what the old block gives for the same input. logits: that of
            the second: the whole learns the old model's next-token probabilities. temperature: of these.
            Both may have rates of their own for some parameters.
        whole: in the second stage all weights are trained, and not the new layers alone.

    Raises:
        ValueError: a length or batch below 1, a temperature that is not positive, or no stage.
    """

    length: int = 512
    batch: int = 4
    layers: Recipe | Rates | None = ALONE
    logits: Recipe | Rates | None = TOGETHER
    temperature: float = 1.0
    whole: bool = False

    def __post_init__(self) -> None:
        if min(self.length, self.batch) < 1:
            raise wrong("length, batch", f"{self.length}, {self.batch}", "at least 1 each")
        if not self.temperature > 0:
            raise wrong("temperature", str(self.temperature), "above 0")
        if self.layers is None and self.logits is None:
            raise wrong("layers, logits", "None", "a recipe for one of the stages or for both")


def linearise(
    model: Any,
    stream: Tensor,
    to: str = "gated_deltanet",
    layers: Iterable[int] | Selection | None = None,
    values: int = 1,
    window: int | None = None,
    distillation: Distillation = Distillation(),
    folder: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    report: Callable[[str, int, float], None] = lambda stage, step, value: None,
) -> Any:
    """A copy of a Llama-type model, some layers of which are linear and have learned to do what attention did there.

        stage "layers":  mean over the new layers l of |block'_l(h_l) − block_l(h_l)|²,   h_l as in the model itself
        stage "logits":  T² KL(softmax(z / T) ‖ softmax(z' / T)) for each token

    What is not new stays frozen, unless `Distillation.whole`. The copy generates by Transformers' own means, from a
    cache whose new layers hold a state that does not grow; ``save_pretrained`` writes it, and
    `regard.hosts.linear_layers.load` reads it. A folder keeps checkpoints, from which a run that was killed goes on.

    Args:
        model: any Transformers language model whose attention has separate matrices of queries, keys, values and
            outputs. stream: ``(tokens,)`` int64 of text that it knows. to: the mechanism's text. layers: indices of
            those that become it; None for all but every fourth, from the first; or what
            `train.objectives.distillation.select` chose, whose layers keep softmax attention and whose aligned student
            is what is gone on from. values: channels of a value over those of a key. window: tokens that the attention
            left over sees, None for all. seed: of the new weights.
        report: told the stage, the step (from 1) and its loss.

    Raises:
        ValueError: a stream shorter than a sequence, a selection of another mechanism or model or with other values,
            and what `LayerPlan` and `converted` refuse.

    Paper: InfiniteVL, Tao et al., arXiv 2512.08829, with windows and values of two channels a key, whose matrices of
    queries and keys begin anew; here they begin as the model's.
    """
    model = host(model)
    if len(stream) <= distillation.length:
        raise wrong("stream", f"{len(stream)} tokens", f"more than the {distillation.length} of a sequence")
    teacher = model.to(device)
    student, made = begun(teacher, to, layers, values, window, seed)
    new = nn.ModuleList(made.values()).requires_grad_(True)
    losses = {"layers": by_layers(teacher, student, list(made)), "logits": by_logits(teacher, student, distillation)}
    with evaluating(teacher):
        for stage in STAGES:
            recipe: Recipe | Rates | None = getattr(distillation, stage)
            if recipe is None:
                continue
            trained: nn.Module = new
            if stage == "logits" and distillation.whole:
                trained = student.requires_grad_(True)

            def loss(ready: nn.Module, generator: Generator, stage: str = stage) -> Tensor:
                return losses[stage](drawn(stream, distillation, generator).to(device))

            def told(step: int, value: float, stage: str = stage) -> None:
                report(stage, step, value)

            fit_parts(trained, loss, recipe, None if folder is None else folder / stage, device, report=told)
    return student.requires_grad_(True).eval()


def begun(
    teacher: Any, to: str, layers: Iterable[int] | Selection | None, values: int, window: int | None, seed: int
) -> tuple[Any, dict[str, HostedLayer]]:
    """The student before any stage, frozen, and its new layers by the names of their blocks."""
    names = [block.name for block in blocks_of(teacher)]
    if not isinstance(layers, Selection):
        chosen = [x for x in range(len(names)) if x % PERIOD] if layers is None else list(layers)
        student = copy.deepcopy(teacher).requires_grad_(False)
        return student, converted(student, LayerPlan(to, tuple(chosen), values, window), seed)
    if (to, values) != (layers.mechanism, 1) or not isinstance(layers.linear, type(teacher)):
        came = f"of {layers.mechanism!r}, values 1, in a {type(layers.linear).__name__}"
        raise wrong("layers", f"a selection {came}", f"one of {to!r}, values {values}, in a {label(teacher)}")
    student = restored(teacher, layers.linear, layers.layers).requires_grad_(False)
    if window is not None:
        swap(student, "window", size=window).install()
        setattr(student.config, KEY, {**getattr(student.config, KEY), "window": window})
    held = {place: student.get_submodule(name) for place, name in enumerate(attentions(student))}
    return student, {names[place]: held[place] for place in plan_of(student).layers}


def teach(
    model: Any,
    stages: Mapping[str, tuple[Callable[[Generator], Batch], Recipe]],
    folder: Path | None = None,
    device: str = "cpu",
    report: Callable[[str, int, float], None] = lambda stage, step, value: None,
) -> Any:
    """Trains all weights of a model, in place, on texts of one stage after another; returns it.

    What follows distillation in the paper: instructions, whose batches say that answers alone are learned, then long
    sequences. The loss is the cross-entropy of the tokens that are learned.

    Args:
        stages: by name what draws a step's texts, and the recipe. folder: of checkpoints, from which a run that was
            killed goes on. report: told the stage, the step (from 1) and its loss.

    Raises:
        ValueError: no stages.

    Paper: InfiniteVL, Tao et al., arXiv 2512.08829.
    """
    if not stages:
        raise wrong("stages", "none", "at least one, such as {'instructions': (batches, recipe)}")
    model = model.to(device).requires_grad_(True)
    for stage, (batches, recipe) in stages.items():

        def loss(ready: nn.Module, generator: Generator, batches: Callable[[Generator], Batch] = batches) -> Tensor:
            return cross_entropy(cast(Any, ready), batches(generator))

        def told(step: int, value: float, stage: str = stage) -> None:
            report(stage, step, value)

        fit(model, loss, recipe, None if folder is None else folder / stage, device, report=told)
    return model.eval()


def drawn(stream: Tensor, sizes: Distillation, generator: Generator) -> Tensor:
    """``(batch, length)``: windows of the stream."""
    starts = torch.randint(len(stream) - sizes.length + 1, (sizes.batch,), generator=generator)
    return torch.stack([stream[start : start + sizes.length] for start in starts.tolist()])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, as before afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


Loss = Callable[[Tensor], Tensor]
"""Of token ids ``(batch, tokens)``."""


def by_layers(teacher: nn.Module, student: nn.Module, blocks: list[str]) -> Loss:
    """The mean squared error of the outputs of the student's blocks for the inputs of the teacher's."""

    def loss(ids: Tensor) -> Tensor:
        errors = []
        with torch.no_grad(), heard(teacher, blocks) as found:
            teacher(input_ids=ids, use_cache=False)
        for name, (given, named, out) in found.items():
            got = student.get_submodule(name)(*given, **named)
            errors.append(F.mse_loss(states(got), states(out)))
        return torch.stack(errors).mean()

    return loss


def by_logits(teacher: Any, student: Any, sizes: Distillation) -> Loss:
    """How far the student's next-token probabilities are from the teacher's."""

    def loss(ids: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher(input_ids=ids, use_cache=False).logits.float() / sizes.temperature
        got = student(input_ids=ids, use_cache=False).logits.float() / sizes.temperature
        apart = F.kl_div(got.log_softmax(-1), wanted.log_softmax(-1), reduction="sum", log_target=True)
        return apart * sizes.temperature**2 / ids.numel()

    return loss
