"""The contract of latents: a few vectors that read an array of any length, mix, and may write back to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn

from regard.core.arguments import Configured
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.kernels import dense

Normalise = Literal["keys", "slots"]
LEAST = 1e-8
"""Added to each slot's share before a slot's shares are divided by their sum."""


class Reading(NamedTuple):
    """What latents ask of an array: ``q (b, h, M, d)``, ``k (b, h, n, d)``, ``v (b, h, n, e)``, the scale of q·k."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float


class Latents(Configured):
    """The base of latents: in each round they read the array and mix among themselves; at the end they may write to it.

        normalise "keys":   A_ij = softmax_j(scale q_i·k_j)
        normalise "slots":  A_ij = S_ij / Σ_j S_ij,   S_ij = softmax_i(scale q_i·k_j) + 1e-8
        z ← update(z, A v),   z ← mix(z),   in each of `rounds`

    A subclass writes `start`, what latents begin with, `reading`, what they ask, and any of `updated`, `mixed` and
    `written`.

    Shapes: ``array (b, n, channels)`` -> latents ``(b, M, width)``, or ``(b, n, channels)`` where they write.
    Cost: linear in n: `flops`.

    Args:
        channels: of the array. latents: M, how many. width: of each.

    Raises:
        ValueError: a number below one; in a call, an array of other channels or a mask of another shape.
    """

    normalise: Normalise = "keys"
    rounds: int = 1
    writes: bool = False
    alike: bool = True  # latents in another order give outputs in that order

    def __init__(self, channels: int, latents: int, width: int) -> None:
        super().__init__()
        for name, number in (("channels", channels), ("latents", latents), ("width", width)):
            if number < 1:
                raise wrong(name, str(number), "at least 1")
        self.channels, self.latents, self.width = channels, latents, width

    def start(self, batch: int, generator: Generator | None = None) -> Tensor:
        """``(batch, M, width)``: the latents before they have read anything."""
        raise NotImplementedError

    def prepared(self, array: Tensor) -> Tensor:
        """What is made of the array once, before all rounds."""
        return array

    def reading(self, turn: int, latents: Tensor, array: Tensor) -> Reading | None:
        """What latents ask in this round, counted from 0; None where they do not read in it."""
        raise NotImplementedError

    def gathered(self, turn: int, asked: Reading, real: Tensor | None) -> Tensor:
        """``A v (b, h, M, e)``, without forming A where keys share it."""
        if self.normalise == "slots":
            return shares(asked, real, "slots") @ asked.v
        return dense.attend(asked.q, asked.k, asked.v, Layout(key_mask=real), asked.scale)

    def updated(self, turn: int, latents: Tensor, found: Tensor) -> Tensor:
        """The latents after they have found ``A v (b, h, M, e)``: heads joined, and nothing else."""
        return merge_heads(found)

    def mixed(self, turn: int, latents: Tensor) -> Tensor:
        """The latents after they have looked at each other."""
        return latents

    def written(self, latents: Tensor, array: Tensor, prepared: Tensor) -> Tensor:
        """What goes out: the latents, or what they write back to the array."""
        return latents

    def forward(
        self,
        array: Tensor,
        key_mask: Tensor | None = None,
        start: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Latents, or the array that they wrote.

        Args:
            array: ``(b, n, channels)``. key_mask: ``(b, n)`` bool, False = no element. start: latents to begin with,
                ``(b, M, width)`` of any M. generator: of what is random in `start`.
        """
        return self.run(array, key_mask, start, generator, [])

    def maps(
        self,
        array: Tensor,
        key_mask: Tensor | None = None,
        start: Tensor | None = None,
        generator: Generator | None = None,
    ) -> list[Tensor]:
        """A ``(b, h, M, n)`` of each round in which latents read."""
        asked: list[Reading] = []
        self.run(array, key_mask, start, generator, asked)
        return [shares(reading, key_mask, self.normalise) for reading in asked]

    def run(
        self,
        array: Tensor,
        key_mask: Tensor | None,
        start: Tensor | None,
        generator: Generator | None,
        asked: list[Reading],
    ) -> Tensor:
        """`forward`, noting what was asked."""
        self.check(array, key_mask)
        latents = self.start(len(array), generator) if start is None else start
        prepared = self.prepared(array)
        for turn in range(self.rounds):
            reading = self.reading(turn, latents, prepared)
            if reading is not None:
                asked.append(reading)
                latents = self.updated(turn, latents, self.gathered(turn, reading, key_mask))
            latents = self.mixed(turn, latents)
        return self.written(latents, array, prepared)

    def check(self, array: Tensor, key_mask: Tensor | None) -> None:
        """Raises an error that names the argument which does not fit."""
        if array.dim() != 3 or array.shape[2] != self.channels:
            raise wrong("array", f"shape {tuple(array.shape)}", f"(batch, n, {self.channels})")
        if array.shape[1] == 0:
            raise wrong("array", "no elements", "at least one to read")
        if key_mask is not None and (key_mask.dtype != torch.bool or key_mask.shape != array.shape[:2]):
            came = f"{key_mask.dtype} of shape {tuple(key_mask.shape)}"
            raise wrong("key_mask", came, f"bool of shape {tuple(array.shape[:2])}")

    def flops(self, n: int, batch: int = 1) -> int:
        """FLOPs of the matrix products on an array of n elements: two a multiply-add."""
        raise NotImplementedError

    @property
    def parameter_count(self) -> int:
        """How many parameters there are; what is shared counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        """Small instances that the laws examine."""
        raise NotImplementedError


def shares(asked: Reading, real: Tensor | None, normalise: Normalise) -> Tensor:
    """A ``(b, h, M, n)`` of a reading; elements that are none have no share."""
    scores = asked.q * asked.scale @ asked.k.mT
    hidden = None if real is None else ~real[:, None, None]
    if normalise == "keys":
        scores = scores if hidden is None else scores.masked_fill(hidden, -torch.inf)
        return torch.softmax(scores, -1).nan_to_num(0.0)
    found = torch.softmax(scores, -2) + LEAST
    found = found if hidden is None else found.masked_fill(hidden, 0)
    return found / found.sum(-1, keepdim=True).clamp(min=LEAST)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``(b, n, h d)`` as ``(b, h, n, d)``."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """`split_heads` undone."""
    return x.transpose(1, 2).flatten(2)


def linear_flops(*layers: nn.Linear) -> int:
    """FLOPs of these layers on one vector."""
    return sum(2 * layer.weight.numel() for layer in layers)
