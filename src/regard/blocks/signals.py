"""A mechanism's signals, projected from the hidden states that its tokens have."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.core.mechanism import Signal
from regard.projections.base import split_heads


class Signals(nn.Module):
    """One affine map for each signal, followed by what brings it into its range.

        s = act(x W + b),   act: low + (high − low) σ(·) between two bounds, low + softplus(·) above one,
        high − softplus(·) below one, the identity without any

    b is set so that ``x W = 0`` gives the signal's `start`; W is zero at first where that is to be `steady`.

    Args:
        specs: the mechanism's signals. width: of the hidden states. heads, kv_heads, head_dim, value_dim: of its call.
    """

    def __init__(
        self, specs: Mapping[str, Signal], width: int, heads: int, kv_heads: int, head_dim: int, value_dim: int
    ) -> None:
        super().__init__()
        self.specs = dict(specs)
        self.sizes = {name: spec.size(head_dim, value_dim) for name, spec in specs.items()}
        self.rows = {name: spec.rows(heads, kv_heads) for name, spec in specs.items()}
        self.maps = nn.ModuleDict()
        for name, spec in specs.items():
            affine = nn.Linear(width, self.rows[name] * math.prod(self.sizes[name]))
            with torch.no_grad():
                affine.bias.copy_(initial_bias(spec, self.rows[name], math.prod(self.sizes[name])))
                if spec.steady:
                    affine.weight.zero_()
            self.maps[name] = affine

    def forward(self, x: Tensor, context: Tensor) -> dict[str, Tensor]:
        """Each signal ``(b, h or g or 1, tokens, *size)``, of the queries' ``x`` or of the keys' ``context``."""
        found = {}
        for name, spec in self.specs.items():
            flat = split_heads(self.maps[name](x if spec.side == "query" else context), self.rows[name])
            found[name] = activate(flat if self.sizes[name] else flat[..., 0], spec)
        return found


def initial_bias(spec: Signal, heads: int, size: int) -> Tensor:
    """``(heads · size)``: what the activation takes to the signal's start, everywhere or over its range."""
    if not isinstance(spec.start, tuple):
        return torch.full((heads * size,), 0.0 if spec.start is None else before_activation(spec.start, spec))
    (first, last), count = spec.start, size if size > 1 else heads
    shares = torch.linspace(0, 1, count) if count > 1 else torch.tensor([0.5])
    values = [before_activation(first * (last / first) ** share, spec) for share in shares.tolist()]
    return torch.tensor(values).repeat(heads if size > 1 else 1)


def activate(x: Tensor, spec: Signal) -> Tensor:
    """Any numbers brought into the signal's range."""
    if math.isfinite(spec.low) and math.isfinite(spec.high):
        return spec.low + (spec.high - spec.low) * torch.sigmoid(x)
    if math.isfinite(spec.low):
        return spec.low + F.softplus(x)
    return spec.high - F.softplus(x) if math.isfinite(spec.high) else x


def before_activation(value: float, spec: Signal) -> float:
    """The number that `activate` takes to ``value``."""
    if not spec.low < value < spec.high:
        raise wrong("start", str(value), f"inside of the signal's range, {spec.low} to {spec.high}")
    if math.isfinite(spec.low) and math.isfinite(spec.high):
        share = (value - spec.low) / (spec.high - spec.low)
        return math.log(share / (1 - share))
    if math.isfinite(spec.low) or math.isfinite(spec.high):
        distance = value - spec.low if math.isfinite(spec.low) else spec.high - value
        return distance + math.log(-math.expm1(-distance))
    return value
