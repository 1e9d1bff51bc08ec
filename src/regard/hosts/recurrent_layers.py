"""Layers of Transformers models that are recurrences, read as the attention that they imply.

| layer | mechanism | what it takes of the layer |
|---|---|---|
| mixers of Mamba, Falcon-Mamba, Jamba | `mamba`, a head a channel | input and output of `x_proj`, norms behind it |
| mixer of Zamba | `mamba` | the output of `in_proj`, convolved and projected again |
| mixers of Mamba-2, Bamba, Falcon-H1, Granite 4, Nemotron-H, Zamba2 | `mamba2` | the same, convolved again |
| delta nets of Qwen3-Next, Qwen3.5, OLMo-hybrid | `gated_deltanet` | the outputs of projections, convolved again |
| delta attention of Kimi Linear, Bailing-hybrid | `kimi_delta` | the same, and of the forget gate |
| lightning attention of MiniMax | `lightning` | the output of `qkv_proj` |

A layer is known by its submodules and parameters, not by its class: others that are made alike are read too. Every row
that is read is multiplied with the values and held against what the layer's own scan gave, so that a layer which only
looks alike is refused. What the layer has made in its own precision is read in float64, so that sums of strong decays
lose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from regard.core.mechanism import Mechanism, repeat_heads
from regard.hosts import caches
from regard.mechanisms.linear.gated_deltanet import GatedDeltaNet
from regard.mechanisms.linear.kimi_delta import KimiDelta
from regard.mechanisms.linear.lightning import Lightning
from regard.mechanisms.linear.mamba import SelectiveScan
from regard.mechanisms.linear.mamba2 import Mamba2
from regard.projections.base import split_heads

EPSILON = 1e-6
"""Under the root of delta nets' unit lengths."""


@dataclass
class Activations:
    """One call of a layer.

    Args:
        into, out: what entered and left the parts that are listened to, by their names. given: the layer's arguments.
        cache: among them. begun: whether it held tokens of the layer before.
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
class ScanInputs:
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

    def output(self, rows: Tensor, weights: Tensor) -> Tensor:
        """What the scan gives by the ``rows`` of A."""
        v = self.v.to(weights.dtype)
        found = weights @ v
        if self.skip is not None:
            found = found + self.skip[:, None, None] * v[:, :, rows + v.shape[2] - self.given.shape[2]]
        return found if self.gate is None else found * self.gate[:, :, rows]

    def sizes(self, rows: Tensor, weights: Tensor) -> Tensor:
        """The same of the sizes of all terms, which its rounding errors are in proportion to."""
        skip, gate = (None if part is None else part.abs() for part in (self.skip, self.gate))
        return replace(self, v=self.v.abs(), skip=skip, gate=gate).output(rows, weights.abs())

    def error(self, rows: Tensor, weights: Tensor, real: Tensor, rounded: bool) -> float:
        """The largest error of the ``rows`` of A where ``real (b, rows)``.

        Relative to the largest given number; or, where the layer has ``rounded`` to half precision, to the largest of
        `sizes`.
        """
        apart = (self.output(rows, weights) - self.given[:, :, rows]).abs() * real[:, None, :, None]
        scale = self.sizes(rows, weights) if rounded else self.given.abs()
        return float(apart.max() / scale.max().clamp(min=torch.finfo(apart.dtype).tiny))


class RecurrentLayer:
    """How one kind of layer is read. Everything is of shape ``(b, tokens, …)``.

    A layer is of the kind if it has all ``parts`` and ``marks``, whatever its class is called.

    Args:
        parts: names of the submodules that every call runs, and that are listened to.
        others: of such that only some layers of the kind have, or run.
        marks: of parameters, buffers and submodules by which the kind is known beside its parts.
    """

    parts: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()

    def fits(self, layer: nn.Module) -> bool:
        """Whether the layer is of this kind."""
        return all(getattr(layer, name, None) is not None for name in (*self.parts, *self.marks))

    def heard(self, layer: nn.Module) -> list[str]:
        """The submodules to listen to."""
        return [name for name in (*self.parts, *self.others) if isinstance(getattr(layer, name, None), nn.Module)]

    def begun(self, layer: Any, notes: Activations) -> bool:
        """Whether the cache holds a state of this layer; early releases say where the new tokens stand, or of all."""
        known, position = getattr(notes.cache, "has_previous_state", False), notes.given.get("cache_position")
        if callable(known):
            return bool(known(layer.layer_idx))
        return bool(known) if position is None else notes.cache is not None and int(position[0]) > 0

    def state(self, layer: Any, cache: Any) -> Tensor | None:
        """What the cache holds of this layer, where it shows that."""
        states = getattr(caches.layer(cache, layer.layer_idx), "recurrent_states", None)
        return states.get(0) if isinstance(states, dict) else states

    def tokens(self, layer: Any, notes: Activations) -> list[Tensor]:
        """What has to be known of each token that passed."""
        raise NotImplementedError

    def read(self, layer: Any, tokens: list[Tensor], notes: Activations) -> ScanInputs:
        """The reading of all ``tokens`` so far."""
        raise NotImplementedError


class MambaLayer(RecurrentLayer):
    """Mamba's mixer; with norms of B, C and the step, those of Falcon-Mamba and Jamba."""

    parts = ("in_proj", "x_proj", "out_proj")
    others = ("dt_layernorm", "b_layernorm", "c_layernorm")
    marks = ("conv1d", "dt_proj", "A_log", "D")

    def tokens(self, layer: Any, notes: Activations) -> list[Tensor]:
        states = layer.A_log.shape[1]
        low = notes.out["x_proj"].split([notes.out["x_proj"].shape[-1] - 2 * states, states, states], dim=-1)
        if hasattr(layer, "rms_eps") and not hasattr(
            layer, self.others[0]
        ):  # Falcon-Mamba's norms were no modules once
            low = [F.rms_norm(x.float(), x.shape[-1:], eps=layer.rms_eps).to(x.dtype) for x in low]
        return [notes.into["x_proj"], *(notes.out.get(name, x) for name, x in zip(self.others, low, strict=True))]

    def read(self, layer: Any, tokens: list[Tensor], notes: Activations) -> ScanInputs:
        x, low, b, c = tokens
        step = softplus(layer.dt_proj.weight @ low.mT, layer.dt_proj.bias[:, None])
        gate = notes.out["in_proj"].chunk(2, dim=-1)[1]
        return selective(layer, x, b[:, None], c[:, None], step, gate, notes)


class ManyHeadedMambaLayer(RecurrentLayer):
    """Zamba's mixer: Mamba's for each of some groups of channels, with projections of its own."""

    parts = ("in_proj", "out_proj")
    marks = ("conv1d", "x_proj_weight", "dt_proj_weight", "dt_proj_bias", "A_log", "D")

    def tokens(self, layer: Any, notes: Activations) -> list[Tensor]:
        return [notes.out["in_proj"].unflatten(-1, (-1, 2))[..., 0]]

    def read(self, layer: Any, tokens: list[Tensor], notes: Activations) -> ScanInputs:
        states, mixed = layer.A_log.shape[-1], convolved(layer, tokens[0])
        projected = split_heads(mixed, len(layer.x_proj_weight)) @ layer.x_proj_weight.mT
        low, b, c = projected.split([projected.shape[-1] - 2 * states, states, states], dim=-1)
        step = softplus(layer.dt_proj_weight @ low.mT, layer.dt_proj_bias[..., None]).flatten(1, 2)
        gate = notes.out["in_proj"].unflatten(-1, (-1, 2))[..., 1]
        return selective(layer, mixed, b, c, step, gate, notes)


class Mamba2Layer(RecurrentLayer):
    """Mamba-2's mixer; where no norm follows the scan, as in some of Falcon-H1, a gate does."""

    parts = ("in_proj", "out_proj")
    others = ("norm",)
    marks = ("conv1d", "dt_bias", "A_log", "D", "n_groups")

    def tokens(self, layer: Any, notes: Activations) -> list[Tensor]:
        mixed, low = self.projected(layer, notes)[1:]
        step = softplus(low, layer.dt_bias)
        least, most = getattr(layer, "time_step_limit", None) or (getattr(layer, "time_step_min", 0.0), torch.inf)
        alone = notes.begun and mixed.shape[1] == 1
        return [mixed, step if alone else step.clamp(least, most)]

    def projected(self, layer: Any, notes: Activations) -> Sequence[Tensor]:
        """Gate, what is convolved, and the raw step."""
        sizes = [layer.out_proj.in_features, len(layer.conv1d.weight), len(layer.dt_bias)]
        return (notes.out["in_proj"] * getattr(layer, "mup_vector", 1)).split(sizes, dim=-1)

    def read(self, layer: Any, tokens: list[Tensor], notes: Activations) -> ScanInputs:
        (mixed, step), heads, inner = tokens, len(layer.dt_bias), layer.out_proj.in_features
        mixed = convolved(layer, mixed).double()
        states = (mixed.shape[-1] - inner) // 2
        x, b, c = mixed.split([inner, states, states], dim=-1)
        mechanism = Mamba2(heads).to(x)
        mechanism.log_rate.copy_(layer.A_log)
        q = repeat_heads(split_heads(c, layer.n_groups), heads)
        given = notes.into["norm" if "norm" in notes.into else "out_proj"]
        gate = None if "norm" in notes.into else F.silu(split_heads(self.projected(layer, notes)[0].double(), heads))
        parts = (
            q,
            split_heads(b, layer.n_groups),
            split_heads(x, heads),
            {"step": step.mT},
            split_heads(given.double(), heads),
        )
        return ScanInputs("mamba2", mechanism, *parts, layer.D.double(), gate)


class DeltaLayer(RecurrentLayer):
    """The gated delta nets of Qwen3.5 and of OLMo-hybrid, whose projections are called otherwise.

    Args:
        mixed: the projections to what is convolved, in order. beta, decay: those to the gates. norm: behind the scan.
        last: the layer's last projection.
    """

    marks = ("conv1d", "A_log", "dt_bias")

    def __init__(self, mixed: tuple[str, ...], beta: str, decay: str, norm: str, last: str) -> None:
        self.mixed, self.beta, self.decay, self.norm, self.last = mixed, beta, decay, norm, last
        self.parts = (*mixed, beta, decay, norm)

    def fits(self, layer: nn.Module) -> bool:
        return super().fits(layer) and hasattr(layer, self.last)

    def tokens(self, layer: Any, notes: Activations) -> list[Tensor]:
        beta = notes.out[self.beta].sigmoid()
        return [torch.cat([notes.out[name] for name in self.mixed], dim=-1), beta, self.decays(layer, notes)]

    def decays(self, layer: Any, notes: Activations) -> Tensor:
        """The logarithm of what stays."""
        return decay_of(layer, notes.out[self.decay])

    def read(self, layer: Any, tokens: list[Tensor], notes: Activations) -> ScanInputs:
        mixed, beta, decay = tokens
        mixed, heads = convolved(layer, mixed).double(), beta.shape[-1]
        values = getattr(layer, self.last).in_features
        width = (mixed.shape[-1] - values) // 2
        q, k, v = mixed.split([width, width, values], dim=-1)
        groups = getattr(layer, "num_k_heads", heads)
        q, k = (unit(split_heads(part, groups)) for part in (q, k))
        given = notes.into[self.norm].double().view(len(v), -1, heads, values // heads).transpose(1, 2)
        name, mechanism = self.mechanism(layer)
        signals = {"log_decay": decay.double().transpose(1, 2), "beta": beta.double().mT}
        return ScanInputs(name, mechanism, repeat_heads(q, heads), k, split_heads(v, heads), signals, given)

    def mechanism(self, layer: Any) -> tuple[str, Mechanism]:
        """The mechanism and its name."""
        doubled = getattr(layer, "allow_neg_eigval", False)
        return "gated_deltanet(negative=True)" if doubled else "gated_deltanet", GatedDeltaNet(negative=doubled)


class FusedDeltaLayer(DeltaLayer):
    """Qwen3-Next's gated delta net, whose projections are sorted by key heads."""

    marks = ("conv1d", "A_log", "dt_bias", "fix_query_key_value_ordering")

    def __init__(self) -> None:
        super().__init__(("in_proj_qkvz",), "in_proj_ba", "in_proj_ba", "norm", "out_proj")

    def tokens(self, layer: Any, notes: Activations) -> list[Tensor]:
        found = layer.fix_query_key_value_ordering(notes.out["in_proj_qkvz"], notes.out["in_proj_ba"])
        q, k, v, _, beta, decay = found
        return [torch.cat([part.flatten(2) for part in (q, k, v)], dim=-1), beta.sigmoid(), decay_of(layer, decay)]


class KimiDeltaLayer(DeltaLayer):
    """Delta nets whose channels decay apart, by a forget gate that gives the decays themselves."""

    marks = ("conv1d",)

    def decays(self, layer: Any, notes: Activations) -> Tensor:
        return notes.out[self.decay]

    def mechanism(self, layer: Any) -> tuple[str, Mechanism]:
        return "kimi_delta", KimiDelta()


class LightningLayer(RecurrentLayer):
    """MiniMax' lightning attention."""

    parts = ("qkv_proj", "norm")
    marks = ("slope_rate", "act_fn")

    def begun(self, layer: Any, notes: Activations) -> bool:
        return self.state(layer, notes.cache) is not None

    def state(self, layer: Any, cache: Any) -> Tensor | None:
        held = getattr(cache, "linear_cache", [])[layer.layer_idx : layer.layer_idx + 1]
        return held[0] if held and isinstance(held[0], Tensor) else None

    def tokens(self, layer: Any, notes: Activations) -> list[Tensor]:
        return [layer.act_fn(notes.out["qkv_proj"])]

    def read(self, layer: Any, tokens: list[Tensor], notes: Activations) -> ScanInputs:
        heads = len(layer.slope_rate)
        q, k, v = split_heads(tokens[0].double(), heads).chunk(3, dim=-1)
        mechanism = Lightning(layer.slope_rate.double().flatten().tolist())
        return ScanInputs("lightning", mechanism, q, k, v, {}, split_heads(notes.into["norm"].double(), heads))


SEPARATE = ("q_proj", "k_proj", "v_proj")
SCANS: tuple[RecurrentLayer, ...] = (
    MambaLayer(),
    ManyHeadedMambaLayer(),
    Mamba2Layer(),
    FusedDeltaLayer(),
    DeltaLayer(("in_proj_qkv",), "in_proj_b", "in_proj_a", "norm", "out_proj"),
    DeltaLayer(SEPARATE, "b_proj", "a_proj", "o_norm", "o_proj"),
    KimiDeltaLayer(SEPARATE, "b_proj", "forget_gate", "o_norm", "o_proj"),
    LightningLayer(),
)


def recurrent_layer_of(layer: nn.Module) -> RecurrentLayer | None:
    """How a layer is read, None where it is of none of `SCANS`."""
    return next((scan for scan in SCANS if scan.fits(layer)), None)


def selective(
    layer: Any, x: Tensor, b: Tensor, c: Tensor, step: Tensor, gate: Tensor, notes: Activations
) -> ScanInputs:
    """Mamba's scan of ``x (b, m, channels)`` with ``b, c (b, 1 or heads, m, states)`` and ``step (b, channels, m)``."""
    x, b, c, step, gate = (part.double() for part in (x, b, c, step, gate))
    rates = layer.A_log.flatten(0, -2)
    mechanism = SelectiveScan(*rates.shape).to(x)
    mechanism.log_rate.copy_(rates)
    given, skip = notes.into["out_proj"].double().mT[..., None], layer.D.double().flatten()
    parts = (repeat_heads(c, len(rates)), b, x.mT[..., None], {"step": step}, given, skip)
    return ScanInputs("mamba", mechanism, *parts, F.silu(gate.mT[..., None]))


def softplus(raw: Tensor, bias: Tensor) -> Tensor:
    """The step of a raw one, in the precision of the layer."""
    return F.softplus(raw + bias.to(raw.dtype))


def decay_of(layer: Any, raw: Tensor) -> Tensor:
    """The logarithm of what stays, from the layer's raw gate."""
    return -layer.A_log.float().exp() * F.softplus(raw.float() + layer.dt_bias)


def convolved(layer: Any, x: Tensor) -> Tensor:
    """The layer's causal convolution and activation of ``x (b, n, channels)``."""
    taps = layer.conv1d.weight
    out = F.conv1d(x.mT.to(taps.dtype), taps, layer.conv1d.bias, padding=taps.shape[-1] - 1, groups=len(taps))
    return ACT2FN[layer.activation](out[..., : x.shape[1]]).mT.to(x.dtype)


def unit(x: Tensor) -> Tensor:
    """Vectors of length one."""
    return x * (x.square().sum(-1, keepdim=True) + EPSILON).rsqrt()
