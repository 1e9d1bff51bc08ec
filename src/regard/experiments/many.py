"""Many small models of one shape trained side by side: all seeds and rates in one batched product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from regard.core.errors import wrong

Call = Callable[..., Any]
Loss = Callable[..., Tensor]
"""Of ``(call, *inputs)``: what one model's loss is, ``call`` being the model."""


def train_many(
    models: Sequence[nn.Module],
    loss: Loss,
    draw: Callable[[int], tuple[Tensor, ...]],
    steps: int,
    rates: Sequence[float],
    betas: tuple[float, float] = (0.9, 0.999),
) -> list[nn.Module]:
    """Models of the same shape trained by Adam, each as it would be alone, at a rate of its own.

    One step of all is one batched product (`torch.func.vmap`), which saves most of the time of models that are too
    small to fill a core: twice for one layer of six channels, nothing for two layers of 64.

    Args:
        models: of one class and one shape; they are left as they are. loss: ``(call, *inputs)`` of one model.
        draw: the inputs of a step, from 0, each ``(models, …)``. rates: one for each model.

    Returns:
        Trained copies.

    Raises:
        ValueError: no models, or not a rate for each. RuntimeError: a loss or a gradient that is not finite.
    """
    if not models or len(rates) != len(models):
        raise wrong("rates", f"{len(rates)} for {len(models)} models", "one for each of at least one model")
    shape = deepcopy(models[0]).to("meta")
    parameters, buffers = stack_module_state([deepcopy(model) for model in models])
    values = {name: x.detach() for name, x in parameters.items()}
    first, second = ({name: torch.zeros_like(x) for name, x in values.items()} for _ in range(2))
    rate = torch.tensor(rates)

    def of_one(weights: dict[str, Tensor], fixed: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        return loss(lambda *given: functional_call(shape, (weights, fixed), given), *inputs)

    step_of_all = vmap(grad_and_value(of_one))
    for step in range(steps):
        slopes, losses = step_of_all(values, buffers, *draw(step))
        if not losses.isfinite().all():
            raise wrong("rates", f"a loss of step {step + 1} that is not finite", "lower ones", RuntimeError)
        for name, slope in slopes.items():
            first[name].lerp_(slope, 1 - betas[0])
            second[name].lerp_(slope.square(), 1 - betas[1])
            size = (second[name] / (1 - betas[1] ** (step + 1))).sqrt_().add_(1e-8)
            own = rate.view(-1, *[1] * (slope.dim() - 1)) / (1 - betas[0] ** (step + 1))
            values[name] = values[name] - own * first[name] / size
    if not all(x.isfinite().all() for x in values.values()):
        raise wrong("rates", "a gradient of the last step that is not finite", "lower ones", RuntimeError)
    trained = [deepcopy(model) for model in models]
    for place, model in enumerate(trained):
        model.load_state_dict({**model.state_dict(), **{name: x[place] for name, x in values.items()}})
    return trained
