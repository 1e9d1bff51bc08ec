"""A mechanism's signals, projected from the hidden states that its tokens have."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.affine import Affine, inner_size
from regard.core.errors import wrong
from regard.core.mechanism import Signal, repeat_heads
from regard.projections.base import merge_heads, split_heads


class Signals(nn.Module):
    """One affine map for each signal, followed by what brings it into its range.

        s = act(x W + b),   act: low + (high − low) σ(·) between two bounds, low + far(·) above one,
        high − far(·) below one, the identity without any;   far: the signal's form, times its scale

    b is set so that ``x W = 0`` gives the signal's `start`; W is zero at first where that is to be `steady`. A map may
    be of low rank, a distance ``far`` have a learned factor ``exp(a_h)`` for each head, a signal be the key times a
    learned number for each channel instead of a map, or a map of the values of all kv heads: see `Signal`.

    Args:
        specs: the mechanism's signals. width: of what is projected. heads, kv_heads, head_dim, value_dim: of its call.
        hidden: width of the hidden states where these are not what is projected.
    """

    def __init__(
        self,
        specs: Mapping[str, Signal],
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.specs = dict(specs)
        self.sizes = {name: spec.size(head_dim, value_dim) for name, spec in specs.items()}
        self.rows = {name: spec.rows(heads, kv_heads) for name, spec in specs.items()}
        self.maps, self.rates, self.factors = nn.ModuleDict(), nn.ParameterDict(), nn.ParameterDict()
        for name, spec in specs.items():
            rows, size = self.rows[name], math.prod(self.sizes[name])
            if spec.of == "key":
                self.factors[name] = nn.Parameter(torch.ones(rows, size))
                continue
            affine = Affine(
                kv_heads * value_dim if spec.of == "value" else width,
                rows * size,
                inner_size(spec.rank, hidden or width, value_dim),
                spec.inner,
            )
            with torch.no_grad():
                affine.bias.copy_(initial_bias(spec, rows, size))
                if spec.steady:
                    affine.weight.zero_()
            self.maps[name] = affine
            if spec.rate:
                self.rates[name] = nn.Parameter(torch.zeros(rows))

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        apart_from: Mapping[str, Tensor] = {},
        k: Tensor | None = None,
        v: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Each signal ``(b, h or g or 1, tokens, *size)``, of the queries' ``x`` or of the keys' ``context``.

        ``apart_from`` holds the hidden states of signals that are made of others, ``k (b, g, m, d)`` the keys, ``v (b,
        g, m, e)`` the values.
        """
        found = {}
        for name, spec in self.specs.items():
            if spec.of == "key":
                assert k is not None
                found[name] = repeat_heads(k, self.rows[name]) * self.factors[name][:, None]
                continue
            own = merge_heads(v) if spec.of == "value" and v is not None else context
            source = apart_from.get(name, x if spec.side == "query" else own)
            flat = split_heads(self.maps[name](source), self.rows[name])
            flat = flat if self.sizes[name] else flat[..., 0]
            found[name] = activate(flat, spec, self.rates[name] if spec.rate else None)
        return found

    @property
    def flops(self) -> int:
        """FLOPs of the matrix products for each token."""
        return 2 * sum(weight.numel() for weight in self.maps.parameters() if weight.dim() == 2)


def initial_bias(spec: Signal, heads: int, size: int) -> Tensor:
    """``(heads · size)``: what the activation takes to the signal's start, everywhere or over its range."""
    if not isinstance(spec.start, tuple):
        return torch.full((heads * size,), 0.0 if spec.start is None else before_activation(spec.start, spec))
    (first, last), count = spec.start, size if size > 1 else heads
    shares = torch.linspace(0, 1, count) if count > 1 else torch.tensor([0.5])
    values = [before_activation(first * (last / first) ** share, spec) for share in shares.tolist()]
    return torch.tensor(values).repeat(heads if size > 1 else 1)


def activate(x: Tensor, spec: Signal, rate: Tensor | None = None) -> Tensor:
    """Any numbers ``(b, h, tokens, …)`` brought into the signal's range, its distance times ``exp(rate) (h,)``."""
    if ranged(spec):
        return spec.low + (spec.high - spec.low) * torch.sigmoid(x)
    if spec.form == "grown" and rate is not None:
        return (rate.view(-1, *[1] * (x.dim() - 2)) * F.softplus(x)).exp()
    if not (math.isfinite(spec.low) or math.isfinite(spec.high)):
        return x
    far = spec.scale * {"exp": torch.exp, "sigmoid": torch.sigmoid}.get(spec.form or "", F.softplus)(x)
    if rate is not None:
        far = far * rate.exp().view(-1, *[1] * (x.dim() - 2))
    return spec.high - far if math.isfinite(spec.high) else spec.low + far


def ranged(spec: Signal) -> bool:
    """Whether its activation covers all of two bounds."""
    return math.isfinite(spec.low) and math.isfinite(spec.high) and spec.form is None


def before_activation(value: float, spec: Signal) -> float:
    """The number that `activate` takes to ``value``."""
    if not spec.low < value < spec.high:
        raise wrong("start", str(value), f"inside of the signal's range, {spec.low} to {spec.high}")
    if ranged(spec):
        share = (value - spec.low) / (spec.high - spec.low)
        return math.log(share / (1 - share))
    if not (math.isfinite(spec.low) or math.isfinite(spec.high)):
        return value
    distance = (spec.high - value if math.isfinite(spec.high) else value - spec.low) / spec.scale
    if spec.form == "exp":
        return math.log(distance)
    if spec.form == "sigmoid":
        return math.log(distance / (1 - distance))
    return distance + math.log(-math.expm1(-distance))
