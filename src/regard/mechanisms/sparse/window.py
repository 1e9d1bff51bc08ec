"""The sliding window, with sink tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.layout import Layout
from regard.core.mechanism import Example, Mechanism, Traits, masked_softmax, repeat_heads
from regard.core.state import State, count_new
from regard.kernels import band, dense, packing
from regard.kernels.block_sparse import plan as block_sparse
from regard.kernels.rows import ordered
from regard.patterns import Causal, line


@dataclass(frozen=True)
class WindowCache(State):
    """The tokens that a later one can still see: the first few and the last few, each slot of a fixed place.

    Args:
        k, v: ``(batch, kv_heads, sinks + size - 1, d)`` and ``(…, e)``: the sinks by position, then the latest tokens,
            newest last; four axes of size zero before the first token. Which slots are filled follows from ``seen``.
    """

    k: Tensor
    v: Tensor


@published(
    "window",
    family="sparse",
    title="Longformer: The Long-Document Transformer",
    arxiv="2004.05150",
    year=2020,
    aliases=("sliding_window", "local", "longformer", "streaming_llm"),
    fidelity="third-party code",
    claim=(
        Claim("L layers see exactly L (w - 1) tokens back", cells="window.reach", holds="window.sees_exactly"),
        Claim("a window of at least n is softmax attention", cells="window.wide", holds="window.is_softmax"),
        Claim("the state's bytes do not change", cells="window.stream", holds="window.keeps_its_size"),
    ),
)
class SlidingWindow(Mechanism):
    """Softmax attention to the nearest tokens, and to the first few, which serve as sinks.

        A_ij = exp(s_ij) / Σ_{j' ∈ W(i)} exp(s_ij'),   W(i) = {j : |p_i - p_j| < w or p_j < sinks},
        s_ij = q_i · k_j / sqrt(d)

    A is ``weights``; w is ``size``; p counts the real tokens of the sequence or document. Causal, W(i) is cut at i,
    and holds the token itself and w - 1 before it.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: ``4 n (w + 128) max(d, e)`` FLOPs a head, twice the w bidirectional; memory O(n + m). A padded or packed batch
    runs document by document, a masked one in lists of blocks. State: sinks + w - 1 keys and values, whatever the
    length.

    Args:
        size: w, at least 1. sinks: number of first tokens that every later one sees. scale: None for ``1 / sqrt(d)``.

    Raises:
        ValueError: ``size`` below one or ``sinks`` below zero.

    Paper: Beltagy et al., arXiv 2004.05150, where w counts both sides; sinks: Xiao et al. (StreamingLLM), 2309.17453.
    Positions are those of the text; StreamingLLM's places in the cache are the business of the hosting block.
    """

    traits = Traits(cross=False, masked=True, rows="one", sign="nonnegative", time="linear", state="constant")

    def __init__(self, size: int = 256, sinks: int = 0, scale: float | None = None):
        super().__init__()
        self.window, self.sinks, self.scale = line.Window(size), line.Sinks(sinks), scale

    def support(
        self, n: int, m: int, layout: Layout, device: torch.device | str = "cpu", rows: slice | None = None
    ) -> Tensor:
        queries, keys = layout.query_positions(n, m, device)[:, rows or slice(0, n)], layout.positions(m, device)
        i, j = queries[..., :, None], keys[..., None, :]
        near = self.window.visible(i, j, m) | self.sinks.visible(i, j, m)
        return near[:, None] & layout.allowed(n, m, device, rows)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        return self.rows(q, k, layout, slice(0, q.shape[2]), **signals)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        seen = self.support(q.shape[2], k.shape[2], layout, q.device, rows)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        scores = q[:, :, rows] @ repeat_heads(k, q.shape[1]).mT * scale
        return masked_softmax(scores, seen)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)

        def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
            if mask is None:
                return band.attend(q, k, v, self.window.size, layout.causal, self.sinks.count, self.scale)
            pattern = self.window | self.sinks
            return block_sparse.attend(q, k, v, Causal() & pattern if layout.causal else pattern, self.scale, mask)

        return run(q, k, v, layout.mask) if layout.regular else packing.per_sequence(run, q, k, v, layout)

    def start(
        self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> WindowCache:
        """Empty slots."""
        nothing = torch.empty(batch, 0, 0, 0, device=device, dtype=dtype)
        return WindowCache(torch.zeros(batch, dtype=torch.int64, device=device), nothing, nothing)

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, WindowCache]:
        """Attends to the slots and the new tokens as to one sequence with gaps, then keeps what is still in sight."""
        self.check(q, k, v, Layout(causal=True), signals)
        new = k.shape[2]
        _, seen = count_new(state, key_mask, new, k.shape[0])
        slots = [
            old if old.shape[1] else pad(x[:, :, :0], (0, 0, 0, self.slots)) for old, x in ((state.k, k), (state.v, v))
        ]
        k, v = (torch.cat([old, x], dim=2) for old, x in zip(slots, (k, v), strict=True))
        fresh = torch.ones(k.shape[0], new, dtype=torch.bool, device=k.device) if key_mask is None else key_mask
        real = torch.cat([self.filled(state.seen), fresh], dim=1)
        layout = Layout(causal=True, key_mask=real)
        if new == 1:
            mask = self.support(1, k.shape[2], layout, k.device)
            out = dense.over(q, k, v, [dense.Piece(slice(0, 1), slice(0, k.shape[2]), mask=mask)], self.scale).out
        else:
            out = self(q, k, v, layout)
        kept = self.kept(real, state.seen, seen)
        return out, WindowCache(seen, *(ordered(x, kept) for x in (k, v)))

    @property
    def slots(self) -> int:
        """How many tokens the state holds."""
        return self.sinks.count + self.window.size - 1

    def filled(self, seen: Tensor) -> Tensor:
        """``(batch, slots)`` bool: slots that hold a token, one that stands among the sinks not being held twice."""
        sinks = torch.arange(self.sinks.count, device=seen.device) < seen[:, None]
        positions = torch.arange(1 - self.window.size, 0, device=seen.device) + seen[:, None]
        return torch.cat([sinks, positions >= self.sinks.count], dim=1)

    def kept(self, real: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """``(batch, slots)``: which columns of slots and new tokens go to which slot; any where none is due."""
        # The real columns of each row first, in order: the sinks, then what the window held beyond them, then the new.
        order = torch.argsort(~real, dim=1, stable=True)
        count = real.sum(1, keepdim=True)
        sinks = torch.arange(self.sinks.count, device=real.device).expand(real.shape[0], -1)
        latest = torch.arange(1 - self.window.size, 0, device=real.device) + count
        places = torch.cat([sinks, latest], dim=1).clamp(0, real.shape[1] - 1)
        return order.gather(1, places)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        cells = band.cells(shape.n, shape.keys, self.window.size, layout.causal, self.sinks.count)
        flops = 4 * shape.batch * shape.heads * cells * max(shape.head_dim, shape.values)
        state = shape.batch * shape.groups * self.slots * (shape.head_dim + shape.values) * shape.itemsize
        return Cost(flops, shape.io_bytes, state)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("w = 7", cls(7), heads=3, kv_heads=3),
            Example("w = 5, 3 sinks, grouped", cls(5, sinks=3), heads=4, kv_heads=2),
            Example("w = 101, 2 sinks", cls(101, sinks=2)),
        ]
