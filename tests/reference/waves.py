"""Numbers that need not be stored: waves, in place of random weights and maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def wave(shape, phase: float = 0.0) -> Tensor:
    """Values of a sine at places that never meet again, in float64."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 0.7310585786 + phase).reshape(shape)


def alike_in_places(tokens: int, d: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of two heads in float32, neighbours of q and of k being alike in places."""
    q, k, v = (2 * wave((1, 2, tokens, d), phase).float() for phase in (0.1, 0.2, 0.3))
    slow = torch.sin(torch.arange(tokens) / 40)[:, None] * torch.linspace(-3, 3, d)
    return q + slow, k + slow, v


def waved(module: nn.Module) -> nn.Module:
    """The module in float64 and in evaluation, its parameters and running statistics waves, each of another phase."""
    module = module.double().eval()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(parameter_wave(number, parameter.shape))
        for number, (name, buffer) in enumerate(module.named_buffers()):
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(running_wave(number, name, buffer.shape))
    return module


def waved_in_use(module: nn.Module, *inputs) -> nn.Module:
    """The module in float64 and in training, its parameters waves, numbered as what holds them is called."""
    module, order = module.double().train(), {}
    owners = [each for each in module.modules() if any(True for _ in each.parameters(recurse=False))]
    hooks = [each.register_forward_pre_hook(lambda own, _: order.setdefault(own)) for each in owners]
    with torch.no_grad():
        module(*inputs)
        for hook in hooks:
            hook.remove()
        assert len(order) == len(owners), [type(each) for each in owners if each not in order]
        for number, parameter in enumerate(each for own in order for each in own.parameters(recurse=False)):
            parameter.copy_(parameter_wave(number, parameter.shape))
    return module


def parameter_wave(number: int, shape) -> Tensor:
    """The values of the parameter of this number."""
    return 0.7 * wave(shape, 1 + number)


def running_wave(number: int, name: str, shape) -> Tensor:
    """The values of the running statistic of this number: means around zero, variances above."""
    values = wave(shape, 40 + number)
    return 0.2 * values if name.endswith("mean") else 1 + 0.5 * values**2
