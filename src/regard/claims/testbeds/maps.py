"""Feature maps: drawn numbers, modules whose parameters are all moved, and differences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def count(module: nn.Module) -> int:
    """How many parameters there are."""
    return sum(parameter.numel() for parameter in module.parameters())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stirred(module: nn.Module) -> Any:
    """The module in float64 and evaluation, noise on every parameter, so that none is where it began."""
    module = module.double().eval()
    with torch.no_grad():
        for place, parameter in enumerate(module.parameters()):
            parameter.add_(0.3 * drawn(*parameter.shape, seed=place))
    return module


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    return (one - other).abs().max().item()
