"""The contract of gates: factors, computed from a feature map, that the map is multiplied by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.core.kinds import Sample

Rule = Literal["product", "mean", "residual"]
Factors = dict[str, Tensor]
MapShape = tuple[int, ...]
AXES = "cyx"
"""The axes of a feature map ``(b, c, y, x)`` after the batch: channels, rows, columns."""


@dataclass(frozen=True)
class GateTraits:
    """What a gate claims; the laws hold it to every word.

    Args:
        low, high: range of every factor. sums: "space" if each factor sums to one over all positions.
        shifts: what a map shows, moved away from its borders, moves the output with it and changes nothing else.
        permutes: permuting the channels of the map permutes those of the output.
        batch_norm: batch statistics are used in training, running ones in evaluation.
    """

    low: float = 0.0
    high: float = 1.0
    sums: Literal["space"] | None = None
    shifts: bool = True
    permutes: bool = False
    batch_norm: bool = False


class Gate(nn.Module):
    """The base of every gate: ``y = x ⊙ s(f_1(x), f_2(x) …)``, a feature map times factors that it computes itself.

        product:   y = x ⊙ f_1 ⊙ f_2 …
        mean:      y = x ⊙ (f_1 + f_2 + …) / number
        residual:  y = x ⊙ (1 + f_1 ⊙ f_2 …)

    The factors are `factors`, by the axes along which they vary: ``c`` is ``(b, c, 1, 1)``, ``yx`` ``(b, 1, y, x)``,
    ``cy`` ``(b, c, y, 1)``; the rule is `rule`.

    Shapes: ``x (b, c, y, x)`` -> the same, of any height and width.

    Args:
        channels: of the map, c.

    Raises:
        ValueError: fewer than one channel; in a call, other channels, or descriptors of earlier stages where none
            are wanted or the other way round.
    """

    rule: Rule = "product"
    traits: GateTraits = GateTraits()
    past: tuple[int, ...] = ()
    """Channels of the descriptors ``(b, c')`` of earlier stages that a call is given, from the first stage on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise wrong("channels", str(channels), "at least 1")
        self.channels = channels

    def factors(self, x: Tensor, past: Sequence[Tensor] | None = None) -> Factors:
        """The factors of ``x`` by the axes along which they vary; each broadcasts to x. This is the gate's map."""
        raise NotImplementedError

    def scale(self, x: Tensor, past: Sequence[Tensor] | None = None) -> Tensor:
        """All factors as one, which broadcasts to ``x``: y = x ⊙ scale."""
        return combined(self.factors(x, past), self.rule)

    def forward(self, x: Tensor, past: Sequence[Tensor] | None = None) -> Tensor:
        self.check(x, past)
        return x * self.scale(x, past)

    def identity(self) -> Started:
        """This gate with a start that leaves x as it is."""
        return Started(self)

    def check(self, x: Tensor, past: Sequence[Tensor] | None) -> None:
        """Raises an error that names the argument which does not fit."""
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise wrong("x", f"shape {tuple(x.shape)}", f"(batch, {self.channels}, rows, columns)")
        if past is None and not self.past:
            return
        came = tuple(descriptor.shape[-1] for descriptor in past) if past else ()
        if came != self.past:
            wanted = f"descriptors of {self.past} channels" if self.past else "None: this gate reads its own map alone"
            raise wrong("past", f"descriptors of {came} channels" if came else "None", wanted)

    @property
    def parameter_count(self) -> int:
        """How many parameters it has, by formula."""
        raise NotImplementedError

    def flops(self, shape: MapShape) -> int:
        """FLOPs of the products and convolutions on a map of this shape ``(b, c, y, x)``: two a multiply-add."""
        raise NotImplementedError

    @classmethod
    def examples(cls) -> list[Sample]:
        """Small gates that cover the options."""
        return [Sample(cls.__name__, cls(12))]


class Series(Gate):
    """Gates one after the other, each of what the one before left: ``se | spatial``.

    Args:
        gates: of the same channels. They read no earlier stages.
    """

    def __init__(self, *gates: Gate) -> None:
        if not gates or {gate.channels for gate in gates} != {gates[0].channels}:
            raise wrong("gates", f"channels {[gate.channels for gate in gates]}", "at least one, all of as many")
        if any(gate.past for gate in gates):
            raise wrong("gates", "one that reads earlier stages", "gates that read their own map alone")
        super().__init__(gates[0].channels)
        self.gates = nn.ModuleList(gates)

    @property
    def traits(self) -> GateTraits:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What holds of all: a factor of one that is no product is its whole scale."""
        spans = [span(gate) for gate in self.members]
        return GateTraits(
            low=min(low for low, _ in spans),
            high=max(high for _, high in spans),
            shifts=all(gate.traits.shifts for gate in self.members),
            permutes=all(gate.traits.permutes for gate in self.members),
            batch_norm=any(gate.traits.batch_norm for gate in self.members),
        )

    @property
    def members(self) -> list[Gate]:
        """The gates, in turn."""
        return [gate for gate in self.gates if isinstance(gate, Gate)]

    def factors(self, x: Tensor, past: Sequence[Tensor] | None = None) -> Factors:
        found: Factors = {}
        for number, gate in enumerate(self.members):
            own = gate.factors(x)
            if gate.rule != "product":
                own = {AXES: combined(own, gate.rule)}
            found |= {name if name not in found else f"{name}.{number}": factor for name, factor in own.items()}
            if gate is not self.gates[-1]:
                x = x * combined(own, "product")
        return found

    def forward(self, x: Tensor, past: Sequence[Tensor] | None = None) -> Tensor:
        self.check(x, past)
        for gate in self.members:
            x = x * gate.scale(x)
        return x

    @property
    def parameter_count(self) -> int:
        return sum(gate.parameter_count for gate in self.members)

    def flops(self, shape: MapShape) -> int:
        return sum(gate.flops(shape) for gate in self.members)


class Started(nn.Module):
    """A gate that begins as the identity: ``y = x + α (gate(x) − x)``, x times 1 + α (s − 1), with α = 0 at first.

    α is `alpha`, learned; at zero the output is x bit by bit, wherever the gate is finite.

    Paper: α as in ReZero, Bachlechner et al., arXiv 2003.04887.
    """

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate, self.alpha = gate, nn.Parameter(torch.zeros(()))

    @property
    def past(self) -> tuple[int, ...]:
        """What the gate reads of earlier stages."""
        return self.gate.past

    def forward(self, x: Tensor, past: Sequence[Tensor] | None = None) -> Tensor:
        return x + self.alpha * (self.gate(x, past) - x)


def combined(factors: Mapping[str, Tensor], rule: Rule) -> Tensor:
    """What x is multiplied by: the factors under a rule."""
    if rule == "mean":
        return reduce(torch.add, factors.values()) / len(factors)
    product = reduce(torch.mul, factors.values())
    return 1 + product if rule == "residual" else product


def span(gate: Gate) -> tuple[float, float]:
    """The range of what a gate multiplies by, as one factor among others."""
    low, high = gate.traits.low, gate.traits.high
    return (1 + low, 1 + high) if gate.rule == "residual" else (low, high)
