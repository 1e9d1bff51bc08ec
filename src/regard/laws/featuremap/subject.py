"""What a law of feature maps examines: one example, its parameters stirred, with maps drawn for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regard.core.kinds import Sample
from regard.laws.finding import Broken, slopes_hold

SIZES = ((13, 7), (8, 11), (1, 1), (1, 5), (3, 1))
"""Rows and columns that the laws draw: odd, even, one row or column, a single cell."""
BATCH, SEED = 2, 20_262
PRECISIONS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}


class MapSubject:
    """One example under examination.

    Its parameters and running statistics are `stirred`, in float64, so that what begins as zero or one hides nothing.

    Args:
        example: with ``channels`` in its ``given``, an int or, for several maps, a tuple. device: where to examine it.
    """

    def __init__(self, example: Sample, device: str = "cpu") -> None:
        self.example, self.device = example, device
        self.module: Any = stirred(example.thing).to(device)
        self.module.eval()

    def draw(self, channels: int, size: tuple[int, int], *, batch: int = BATCH, seed: int = 0) -> Tensor:
        """A map ``(batch, channels, rows, columns)`` of normal numbers."""
        generator = torch.Generator().manual_seed(SEED + seed)
        shape = (batch, channels, *size)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.device)


def stirred(module: nn.Module) -> nn.Module:
    """A copy in float64 with weights of its own, every other parameter moved, and running statistics unlike the
    start's.

    All of it is the same each time, whatever the module was begun with.
    """
    generator, made = torch.Generator().manual_seed(SEED), copy.deepcopy(module).cpu().double()

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(1.5 * noise(parameter) / parameter[0].numel() ** 0.5)
            else:  # norms begin at ones, strengths at zero or one, biases anywhere
                parameter.copy_(0.3 * noise(parameter) + (0 if name.endswith("bias") else parameter))
        for name, buffer in made.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * noise(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    return made


def counted(module: nn.Module) -> int:
    """The numbers in its parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def right_count(subject: MapSubject) -> str:
    """Broken unless ``parameter_count`` is the number of parameters."""
    formula, there = subject.module.parameter_count, counted(subject.module)
    if formula != there:
        raise Broken(f"formula {formula:,} parameters, there are {there:,}")
    return f"{there:,} parameters"


def counted_flops(module: Any, arguments: tuple, shapes: Any) -> int:
    """What PyTorch counts of a call; Broken unless it is the formula's ``flops(shapes)``."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*arguments)
    counted, formula = counter.get_total_flops(), module.flops(shapes)
    if counted != formula:
        raise Broken(f"{shapes}: formula {formula:,} FLOPs, counted {counted:,}")
    return counted


def right_gradients(module: nn.Module, leaves: list[Tensor], arguments: Callable[..., tuple]) -> str:
    """Broken unless gradients of the leaves and parameters are numerical ones, and every parameter has one.

    ``arguments`` makes of the leaves what the module is called with; of lists of maps the outputs are joined.
    """
    named = dict(module.named_parameters())
    for leaf in leaves:
        leaf.requires_grad_()

    def run(*given: Tensor) -> Tensor:
        weights = dict(zip(named, given[len(leaves) :], strict=True))
        return joined(torch.func.functional_call(module, weights, arguments(*given[: len(leaves)])))

    slopes_hold(run, [*leaves, *named.values()])
    out = joined(module(*arguments(*leaves)))
    weighting = torch.sin(torch.arange(out.numel(), dtype=out.dtype, device=out.device)).view_as(out)
    found = torch.autograd.grad((out * weighting).sum(), list(named.values()), allow_unused=True) if named else ()
    for name, gradient in zip(named, found, strict=True):
        if gradient is None:  # zero it may be: that of a bias under a softmax
            raise Broken(f"{name} has no gradient")
    return f"{len(named)} parameters"


def joined(out: Tensor | list[Tensor]) -> Tensor:
    """One tensor of a tensor or of several."""
    return out if isinstance(out, Tensor) else torch.cat([each.flatten() for each in out])


def finite(tensors: dict[str, Tensor | None], where: str) -> None:
    """Broken if one of them is not finite."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.isfinite().all():
            raise Broken(f"{where}: {name} is not finite")


def strided(x: Tensor) -> list[tuple[str, Tensor]]:
    """The same map stored otherwise in memory."""
    return [
        ("channels last", x.contiguous(memory_format=torch.channels_last)),
        ("rows innermost", x.transpose(2, 3).contiguous().transpose(2, 3)),
        ("every other cell", x.repeat_interleave(2, 3)[..., ::2]),
    ]
