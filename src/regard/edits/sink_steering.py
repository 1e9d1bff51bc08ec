"""Sinks made weaker where they are made: what a network writes into them is rescaled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.edit import Edit, Place, Rows, Where, sampled
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.mechanism import accumulate_dtype

ALIGNED = 0.98
"""Cosine from which a network's output is that of a sink, as in the authors' code."""


class SinkSteering(Edit):
    """What networks add along a sink's direction, given another norm: y ← y (1 + s (t / ‖y‖ − 1)) where cos(y, u) > c.

    y is the output of a block's feed-forward network at a token, u the direction, t the norm. The first tokens are
    left alone: they are the primary sink.

    Args:
        direction: u, ``(channels,)``, such as `analysis.secondary_sinks.sink_direction` gives. norm: t. strength: s, 1
            for the authors'. aligned: c. rows: positions that are changed, all but the first three if not given.
        layers, batch: see `core.edit.Where`.

    Raises:
        ValueError: a norm below zero; while it runs, a direction of another size than the states.

    Paper: arXiv 2512.22213; the cosine and the first tokens as in the authors' code.
    """

    dial: ClassVar[tuple[str, float] | None] = ("strength", 0.0)
    parts = ("mlp",)

    def __init__(
        self,
        direction: Tensor,
        norm: float,
        strength: float = 1.0,
        *,
        aligned: float = ALIGNED,
        layers: Iterable[int] | None = None,
        rows: Rows | None = None,
        batch: Sequence[int] | None = None,
    ) -> None:
        if not norm >= 0:
            raise wrong("norm", str(norm), "a length from 0 on")
        super().__init__(Where(layers, None, slice(3, None) if rows is None else rows, batch=batch))
        self.direction, self.norm, self.strength, self.aligned = direction, norm, strength, aligned

    def hidden(self, x: Tensor, place: Place) -> Tensor:
        if self.direction.shape != x.shape[2:]:
            raise wrong("direction", f"shape {tuple(self.direction.shape)}", f"({x.shape[2]},), the model's channels")
        wide = x.to(accumulate_dtype(x.dtype))
        alike = torch.cosine_similarity(wide, self.direction.to(wide), dim=2) > self.aligned
        factor = 1 + self.strength * (self.norm / wide.norm(dim=2).clamp(min=1e-12) - 1)
        return torch.where(alike[..., None], wide * factor[..., None], wide).to(x.dtype)

    @classmethod
    def examples(cls) -> list[Sample]:
        direction = torch.linspace(-1, 2, 24)
        return sampled(cls(direction, 0.7, aligned=-0.9), cls(direction, 2.0, 0.4, aligned=-0.8, layers=[1]))
