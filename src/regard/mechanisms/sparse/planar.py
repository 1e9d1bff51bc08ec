"""Bidirectional attention that needs a whole map, or line, at once: each document of a batch by itself."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from regard.core.layout import Layout, plane_of
from regard.core.mechanism import Mechanism, Traits, repeat_heads
from regard.kernels import packing

Plane = tuple[int, int]


class Planar(Mechanism):
    """The base of mechanisms whose rows depend on all cells of a map, whatever of them they see.

    A subclass writes `whole`, A of one document on its plane, and `run`, the same times v, fast. A padded or packed
    batch is each sequence and document alone, on a line.
    """

    traits: ClassVar[Traits] = Traits(causal=False, cross=False, rows="one", sign="nonnegative", flops="at most")  # pyright: ignore[reportIncompatibleVariableOverride]

    def whole(self, q: Tensor, k: Tensor, plane: Plane) -> Tensor:
        """A ``(b, h, m, m)`` of one document."""
        raise NotImplementedError

    def run(self, q: Tensor, k: Tensor, v: Tensor, plane: Plane) -> Tensor:
        """``A v`` of one document, which has a cell at least."""
        return (self.whole(q, k, plane) @ repeat_heads(v, q.shape[1])).to(q.dtype)

    def support(
        self, n: int, m: int, layout: Layout, device: torch.device | str = "cpu", rows: slice | None = None
    ) -> Tensor:
        return layout.among_tokens(n, m, device, rows)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        if layout.regular and k.shape[2]:
            return self.whole(q, k, plane_of(layout, k.shape[2])).to(q)
        return packing.maps(lambda q, k, rows: self.whole(q, k, (1, k.shape[2]))[:, :, rows], q, k, layout)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        return self.weights(q, k, layout, **signals)[:, :, rows]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        if not k.shape[2]:
            return q.new_zeros(*q.shape[:3], v.shape[3])
        if layout.regular:
            return self.run(q, k, v, plane_of(layout, k.shape[2]))

        def alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.run(q, k, v, (1, k.shape[2]))

        return packing.per_sequence(alone, q, k, v, layout)
