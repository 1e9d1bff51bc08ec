"""What stands around a mechanism in its paper's layer: projections, convolution, norm, gate, skip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regard.core.errors import wrong

Rank = int | Literal["value", "sixteenth"]
"""Inner size of a map of low rank: a number, the size of a head's values, or a sixteenth of the hidden state's."""
Activation = Literal["silu", "sigmoid", "tanh", "rms"]
"""What stands between two maps of low rank; "rms" is the RMS norm, whose scales are in the second map."""


@dataclass(frozen=True)
class Norm:
    """RMS norm of the heads' outputs, or layer norm where it is ``centred``.

    Args:
        over: the channels that share one mean square: those of each head, of the heads of one kv "group", or all.
        centred: their mean is taken away first, and a bias added at the end (GroupNorm).
        each: a scale for every channel of every head; else, over heads, one set of scales for all heads.
        eps: added to the mean square. factor: what is normed is multiplied with, beside its learned scale.
    """

    over: Literal["head", "group", "all"] = "head"
    centred: bool = False
    each: bool = False
    eps: float = 1e-6
    factor: float = 1.0


@dataclass(frozen=True)
class Gate:
    """Factor of the output, ``act(x W + b)``, or ``act(inner(x W₁) W₂ + b)`` of low rank.

    Args:
        activation: act; None for the identity. before_norm: the output is multiplied before its norm, not after.
        rank: of the map, None for a single matrix. inner: None for the identity. bias: whether there is b.
        of: what x is: the hidden state, for a factor of each channel of each head; or each head's own "output", normed
            where it is, for one factor of all of its channels, by a map that the heads share.
    """

    activation: Literal["silu", "sigmoid"] | None
    before_norm: bool = False
    rank: Rank | None = None
    inner: Activation | None = None
    bias: bool = False
    of: Literal["input", "output"] = "input"


@dataclass(frozen=True)
class Shift:
    """Token shift: each map reads ``x_t + μ ⊙ (x_{t−1} − x_t)``, with μ of its own.

    Args:
        rank: of what the data add to μ, ``tanh((x_t + μ' ⊙ (x_{t−1} − x_t)) A) B``; None for a constant μ.
    """

    rank: int | None = None


@dataclass(frozen=True)
class LayerSpec:
    """What the block around a mechanism does to q, k, v and the output, as its paper has it.

    In this order: token shift, projection, convolution, activation, blend, values of the first layer, norm of q and k,
    unit length, rotary positions; the mechanism; skip, norm, bonus, gate (or gate, then norm).

    Args:
        rotary: q and k are turned by their positions (RoPE); False where the mechanism knows order by itself.
        parts: how many runs of coordinates of q and k are scored apart, each of them turned as a whole.
        convolution: taps of the causal depthwise convolution over q, k and v, 0 for none.
        activation: of q, k and v (after the convolution). unit: q and k are then scaled to length one.
        norm: of the output; True for `Norm()`. gate: of the output; a name for ``Gate(name)``.
        projection: "grouped"; "multi_value" for queries and keys that all heads of a kv group share, and values of
            each head; "shared" for queries that are the keys too; "selective" for queries, keys and signals that are
            projected from the values, once these are convolved and activated.
        bias: whether the convolution has one. shift: how a token's past one is mixed in, None for not at all.
        skip: the output gets each head's own value, times a learned number (D x).
        bonus: the normed output gets the token's own value, weighed by ``q · (u ⊙ k)`` with learned u.
        values: rank of the map σ(x W₁ W₂ + b) by which the values of every layer but the first of its kind are mixed
            with those of the first, ``v + (v₁ − v) ⊙ σ``; None for values of each layer alone.
        blend: keys and values are mixed with those of the token before, ``a z_{t−1} + (1 − a) z_t``, a = σ(x w) for
            each kv head, keys and values having w of their own.
        scored: RMS norm of queries and keys, each with scales of its own, None for none.

    Raises:
        ValueError: what does not go together.
    """

    rotary: bool = True
    parts: int = 1
    convolution: int = 0
    activation: Literal["silu"] | None = None
    unit: bool = False
    norm: Norm | bool = False
    gate: Gate | Literal["silu", "sigmoid"] | None = None
    projection: Literal["grouped", "multi_value", "shared", "selective"] = "grouped"
    bias: bool = False
    shift: Shift | None = None
    skip: bool = False
    bonus: bool = False
    values: Rank | None = None
    blend: bool = False
    scored: Norm | None = None

    def __post_init__(self) -> None:
        if self.bias and not self.convolution:
            raise wrong("bias", "True", "False where nothing is convolved")
        if self.shift is not None and (self.convolution or self.projection != "grouped"):
            raise wrong("shift", str(self.shift), "None with a convolution, or a projection that is not grouped")
        if self.values is not None and (self.convolution or self.projection != "grouped"):
            raise wrong("values", str(self.values), "None with a convolution, or a projection that is not grouped")
        if self.blend and (self.convolution or self.projection != "grouped"):
            raise wrong("blend", "True", "False with a convolution, or a projection that is not grouped")
        if self.gated is not None and self.gated.before_norm and self.normed is None:
            raise wrong("gate.before_norm", "True", "False where there is no norm")
        if self.gated is not None and self.gated.of == "output" and self.gated.before_norm:
            raise wrong("gate.before_norm", "True", "False where the gate is of the output")

    @property
    def normed(self) -> Norm | None:
        """The norm, None for none."""
        return (Norm() if self.norm else None) if isinstance(self.norm, bool) else self.norm

    @property
    def gated(self) -> Gate | None:
        """The gate, None for none."""
        return Gate(self.gate) if isinstance(self.gate, str) else self.gate
