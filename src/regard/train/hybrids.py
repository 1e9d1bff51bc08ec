"""Models some of whose softmax layers are linear: how they are made of a model, aligned to it, and given layers back.

A model is an `LM` or any Transformers language model of the Llama type.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from regard.core.errors import wrong
from regard.core.frozen import frozen
from regard.core.layout import Layout
from regard.core.spec import parse_layers
from regard.hosts.attention_interface import host
from regard.hosts.linear_layers import KEY, HostedLayer, LayerPlan, converted
from regard.hosts.sites import blocks_of, parent
from regard.networks import LM
from regard.train.fit import Recipe
from regard.train.objective import Batch, run
from regard.train.rates import Rates, fit_parts

Batches = Callable[[Generator], Batch]


def depth_of(model: Any) -> int:
    """Number of layers."""
    return model.config.depth if isinstance(model, LM) else len(attentions(model))


def attentions(model: Any) -> list[str]:
    """The names of a Transformers model's attention modules, those that became ours among them."""
    ours = {name: module.layer_idx for name, module in model.named_modules() if isinstance(module, HostedLayer)}
    if not ours:
        return [block.attention[0] for block in blocks_of(host(model))]
    name, index = next(iter(ours.items()))
    steps = name.split(".")
    place = max(at for at, step in enumerate(steps) if step == str(index))
    stack = model.get_submodule(".".join(steps[:place]))
    return [".".join([*steps[:place], str(other), *steps[place + 1 :]]) for other in range(len(stack))]


def linear_of(teacher: Any, mechanism: str) -> Any:
    """A copy whose attention layers are all of a mechanism, with what they can use of the teacher's weights.

    Raises:
        ValueError: what `hosts.linear_layers.converted` refuses.
    """
    depth = depth_of(teacher)
    if isinstance(teacher, LM):
        return hybrid(teacher, [mechanism] * depth)
    student = copy.deepcopy(host(teacher))
    converted(student, LayerPlan(mechanism, tuple(range(depth))))
    return student


def restored(teacher: Any, linear: Any, layers: Sequence[int]) -> Any:
    """The all-linear student with the teacher's softmax attention put back into some layers.

    Raises:
        ValueError: of a Transformers model, all layers.
    """
    if isinstance(teacher, LM):
        softmax, other = ([str(layer) for layer in parse_layers(model.config.layers)] for model in (teacher, linear))
        texts = [softmax[place] if place in layers else text for place, text in enumerate(other)]
        return hybrid(linear, texts, (teacher, layers))
    student = copy.deepcopy(linear)
    for layer in layers:
        name = attentions(student)[layer]
        softmax = copy.deepcopy(teacher.get_submodule(name))
        student.get_submodule(parent(name)).register_module(name.rpartition(".")[2], softmax)
    plan = plan_of(linear)
    left = tuple(layer for layer in plan.layers if layer not in layers)
    setattr(student.config, KEY, asdict(replace(plan, layers=left)))
    return student


def plan_of(model: Any) -> LayerPlan:
    """Which layers of a Transformers model became ours."""
    told = getattr(model.config, KEY)
    return LayerPlan(**{**told, "layers": tuple(told["layers"])})


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


def alignment(teacher: Any, student: Any, batch: Batch) -> Tensor:
    """How far attentions that are given the teacher's states are from the teacher's, a mean over layers and tokens.

    ‖attention_l(h) − attention'_l(h)‖₂ / √width
    """
    pairs = lm_outputs if isinstance(teacher, LM) else hosted_outputs
    each = [
        torch.linalg.vector_norm((own - wanted)[batch.real], dim=-1).mean() * own.shape[-1] ** -0.5
        for wanted, own in pairs(teacher, student, batch)
    ]
    return torch.stack(each).mean()


def lm_outputs(teacher: LM, student: LM, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """What the attention of each layer gives, ``(b, n, width)``, the teacher's and the student's."""
    layout, x = Layout(causal=True, key_mask=batch.mask), teacher.embed(batch.ids)
    for own, other in zip(teacher.layers, student.layers, strict=True):
        with torch.no_grad():
            given = own.norms[0](x)
            wanted, x = own.attention(given, layout), own(x, layout)
        yield wanted, other.attention(given, layout)


def hosted_outputs(teacher: Any, student: Any, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """The same of Transformers models."""
    names = attentions(teacher)
    with torch.no_grad(), heard(teacher, names) as found:
        run(teacher, batch)
    for name in names:
        given, named, out = found[name]
        yield states(out), states(student.get_submodule(name)(*given, **named))


@contextmanager
def heard(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, tuple[Any, Any, Any]]]:
    """While open, what goes into some modules of a model, and what comes out: by name, of the latest call."""
    found: dict[str, tuple[Any, Any, Any]] = {}

    def hear(name: str) -> Callable[..., None]:
        return lambda _, given, named, out: found.__setitem__(name, (given, named, out))

    handles = [model.get_submodule(name).register_forward_hook(hear(name), with_kwargs=True) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def states(out: Any) -> Tensor:
    """The hidden states of what a module gives."""
    return out if isinstance(out, Tensor) else out[0]


def aligned(teacher: Any, student: Any, batches: Batches, recipe: Recipe | Rates) -> Any:
    """The student, its attentions trained towards the teacher's and nothing else: the first stage."""
    if isinstance(student, LM):
        held = [block.attention for block in student.layers]
    else:
        held = [student.get_submodule(name) for name in attentions(student)]
    inside = {id(parameter) for module in held for parameter in module.parameters()}
    kept = [parameter for parameter in student.parameters() if id(parameter) not in inside]

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        return alignment(teacher, student, batches(generator))

    with frozen(kept):
        return fit_parts(student, loss, recipe)
