"""Layers of Transformers models that are recurrences, read as the attention that they imply.

| layer | mechanism | what it takes of the layer |
|---|---|---|
| Mamba's mixer | `mamba`: every channel is a head | input and output of its `x_proj`; A is by state dimension |
| Mamba-2's mixer | `mamba2` | the output of its `in_proj`, convolved again |
| Qwen3-Next's gated delta net | `gated_deltanet` | the outputs of its two projections, convolved again |

Every row that is read is multiplied with the values and held against what the layer's own scan gave. What the layer has
made in its own precision is read in float64, so that sums of strong decays lose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from regard.blocks.projection import apart
from regard.core.mechanism import Mechanism, repeat_heads
from regard.mechanisms.linear.gated_deltanet import GatedDeltaNet
from regard.mechanisms.linear.mamba import SelectiveScan
from regard.mechanisms.linear.mamba2 import Mamba2

EPSILON = 1e-6
"""Under the root of Qwen3-Next's unit lengths."""


@dataclass
class Notes:
    """One call of a layer.

    Args:
        into, out: what entered and left the parts that are listened to, by their names. given: the layer's arguments.
        cache: among these, None for none. begun: whether it held tokens before.
    """

    into: dict[str, Tensor] = field(default_factory=dict)
    out: dict[str, Tensor] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    cache: Any = None
    begun: bool = False

    def clear(self) -> None:
        """For the next call."""
        self.into, self.out, self.given, self.cache, self.begun = {}, {}, {}, None, False


@dataclass(frozen=True)
class Reading:
    """A layer's scan over all m tokens so far, as a mechanism's call, and what the layer made of the last n of them.

        given = gate ⊙ (A v + skip v)

    Args:
        name: of the mechanism in the atlas. q, k, v: ``(b, h, m, d)``, ``(b, g, m, d)``, ``(b, h, m, e)``.
        signals: of the mechanism. given: ``(b, h, n, e)``, what left the scan. skip: ``(h,)``, None for zero.
        gate: like ``given``, where it left the scan gated already.
    """

    name: str
    mechanism: Mechanism
    q: Tensor
    k: Tensor
    v: Tensor
    signals: Mapping[str, Tensor]
    given: Tensor
    skip: Tensor | None = None
    gate: Tensor | None = None

    def error(self, rows: Tensor, weights: Tensor, real: Tensor) -> float:
        """The largest error of the ``rows`` of A where ``real (b, rows)``, relative to the largest given number."""
        v = self.v.to(weights.dtype)
        found = weights @ v
        if self.skip is not None:
            found = found + self.skip[:, None, None] * v[:, :, rows + v.shape[2] - self.given.shape[2]]
        if self.gate is not None:
            found = found * self.gate[:, :, rows]
        apart = (found - self.given[:, :, rows]).abs() * real[:, None, :, None]
        return float(apart.max() / self.given.abs().max().clamp(min=torch.finfo(v.dtype).tiny))


class Scan:
    """How one kind of layer is read. Everything is of shape ``(b, tokens, …)``.

    Args:
        parts: names of the submodules that are listened to; the scan's output enters the last of them.
    """

    parts: tuple[str, ...] = ()

    def tokens(self, layer: Any, notes: Notes) -> list[Tensor]:
        """What has to be known of each token that passed."""
        raise NotImplementedError

    def read(self, layer: Any, tokens: list[Tensor], keys: Tensor | None, notes: Notes) -> Reading:
        """The reading of all ``tokens`` so far, ``keys (b, m)`` being those that are no padding."""
        raise NotImplementedError


class MambaScan(Scan):
    parts = ("in_proj", "x_proj", "out_proj")

    def tokens(self, layer: Any, notes: Notes) -> list[Tensor]:
        return [notes.into["x_proj"], notes.out["x_proj"]]

    def read(self, layer: Any, tokens: list[Tensor], keys: Tensor | None, notes: Notes) -> Reading:
        (x, projected), states = tokens, layer.ssm_state_size
        heads = x.shape[2]
        low, b, c = projected.split([layer.time_step_rank, states, states], dim=-1)
        raw = layer.dt_proj.weight @ low.mT
        step = F.softplus(raw + layer.dt_proj.bias.to(raw.dtype)[:, None]).double()
        x, b, c = (part.double() for part in (x, b, c))
        mechanism = SelectiveScan(*layer.A_log.shape).to(x)
        mechanism.log_rate.copy_(layer.A_log)
        q, k, v = c[:, None].expand(-1, heads, -1, -1), b[:, None], x.mT[..., None]
        given, gate = notes.into["out_proj"].mT[..., None], F.silu(notes.out["in_proj"][..., heads:].mT[..., None])
        return Reading("mamba", mechanism, q, k, v, {"step": step}, given.double(), layer.D.double(), gate.double())


class Mamba2Scan(Scan):
    parts = ("in_proj", "norm")

    def tokens(self, layer: Any, notes: Notes) -> list[Tensor]:
        return [notes.out["in_proj"][..., layer.intermediate_size :]]

    def read(self, layer: Any, tokens: list[Tensor], keys: Tensor | None, notes: Notes) -> Reading:
        heads, states = layer.num_heads, layer.n_groups * layer.ssm_state_size
        mixed, low = tokens[0].split([layer.conv_dim, heads], dim=-1)
        mixed = convolved(layer, mixed)
        mixed = mixed if keys is None else mixed * keys[..., None]
        x, b, c = (part.double() for part in mixed.split([layer.intermediate_size, states, states], dim=-1))
        least, most = layer.time_step_limit
        step = F.softplus(low + layer.dt_bias.to(low.dtype)).clamp(least, most).double().mT
        mechanism = Mamba2(heads).to(x)
        mechanism.log_rate.copy_(layer.A_log)
        q = repeat_heads(apart(c, layer.n_groups), heads)
        k, v, given = apart(b, layer.n_groups), apart(x, heads), apart(notes.into["norm"].double(), heads)
        return Reading("mamba2", mechanism, q, k, v, {"step": step}, given, layer.D.double())


class GatedDeltaScan(Scan):
    parts = ("in_proj_qkvz", "in_proj_ba", "norm")

    def tokens(self, layer: Any, notes: Notes) -> list[Tensor]:
        return [notes.out["in_proj_qkvz"], notes.out["in_proj_ba"]]

    def read(self, layer: Any, tokens: list[Tensor], keys: Tensor | None, notes: Notes) -> Reading:
        q, k, v, _, b, a = layer.fix_query_key_value_ordering(*tokens)
        mixed = convolved(layer, torch.cat([part.flatten(2) for part in (q, k, v)], dim=-1)).double()
        q, k, v = mixed.split([layer.key_dim, layer.key_dim, layer.value_dim], dim=-1)
        groups, heads = layer.num_k_heads, layer.num_v_heads
        q, k = (unit(apart(part, groups)) for part in (q, k))
        decay = -layer.A_log.float().exp() * F.softplus(a.float() + layer.dt_bias)
        signals = {"log_decay": decay.double().mT, "beta": b.sigmoid().double().mT}
        given = notes.into["norm"].double().view(len(v), -1, heads, layer.head_v_dim).transpose(1, 2)
        parts = (repeat_heads(q, heads), k, apart(v, heads))
        return Reading("gated_deltanet", GatedDeltaNet(), *parts, signals, given)


SCANS: Mapping[str, Scan] = {
    "transformers.models.mamba.modeling_mamba.MambaMixer": MambaScan(),
    "transformers.models.mamba2.modeling_mamba2.Mamba2Mixer": Mamba2Scan(),
    "transformers.models.qwen3_next.modeling_qwen3_next.Qwen3NextGatedDeltaNet": GatedDeltaScan(),
}


def scan_of(layer: nn.Module) -> Scan | None:
    """How a layer is read, None where it is none of `SCANS`."""
    return SCANS.get(f"{type(layer).__module__}.{type(layer).__qualname__}")


def convolved(layer: Any, x: Tensor) -> Tensor:
    """The layer's causal convolution and activation of ``x (b, n, channels)``."""
    taps = layer.conv1d.weight
    out = F.conv1d(x.mT.to(taps.dtype), taps, layer.conv1d.bias, padding=taps.shape[-1] - 1, groups=len(taps))
    return ACT2FN[layer.activation](out[..., : x.shape[1]]).mT.to(x.dtype)


def unit(x: Tensor) -> Tensor:
    """Vectors of length one."""
    return x * (x.square().sum(-1, keepdim=True) + EPSILON).rsqrt()
