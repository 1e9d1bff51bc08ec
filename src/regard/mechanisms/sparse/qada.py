"""Query-adaptive attention: a query reads far keys only where their moments say that they would get some of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Mechanism, Traits
from regard.core.state import State, count_new
from regard.kernels import packing as alone
from regard.kernels.tiled import split
from regard.mechanisms.cached import KeyValues
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.aha import AllOrHere
from regard.mechanisms.sparse.routed import in_order
from regard.mechanisms.sparse.window import SlidingWindow

CHUNK = 64
"""Keys whose products are summed up at a time."""
ROWS = 512
"""Queries whose near keys are scored at a time."""


@dataclass(frozen=True)
class Moments(State):
    """All keys and values, and the sums of the keys that have left the window.

    Args:
        local: the window's state. cache: every key and value. count: ``(b,)`` int64, keys summed up. first: ``(b, g,
            d)``, Σ k; second: ``(b, g, d, d)``, Σ k kᵀ, both in float64; without axes before the first token.
    """

    local: State
    cache: KeyValues
    count: Tensor
    first: Tensor
    second: Tensor


@published(
    "qada",
    family="sparse",
    row=118,
    title="Unveiling Simplicities of Attention: Adaptive Long-Context Head Identification",
    arxiv="2502.09647",
    year=2025,
    aliases=("query_adaptive_attention",),
    fidelity="hand values",
    claim=(
        Claim(
            "far keys' moments tell which queries of which heads are local, at an area under the curve of 0.9",
            cells="qada.told",
            holds="qada.tells",
        ),
        Claim(
            "with half of the head-queries local, recall falls by a point at most, and by more where whole heads are",
            cells="qada.recalls",
            holds="qada.keeps_recall",
        ),
    ),
)
class QueryAdaptive(Mechanism):
    """Each query of each head attends to all keys or, where these would get little, to the window and the sinks.

        log far_i  = log T_i + μ_i · q_i / √d + q_iᵀ Σ_i q_i / 2d
        log near_i = log Σ_{j near i} exp(q_i · k_j / √d)
        A_i = S_i if near_i ≥ τ (near_i + far_i) else D_i

    T, μ and Σ are the number, mean and covariance of the keys that query i sees and that are not near: were its scores
    Gaussian, their exponentials would sum to far_i. D is softmax attention, S the window of w keys and the sinks; τ is
    ``share``. Untrained.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; causal.
    Cost: at most that of S and D, and ``2 d (d + CHUNK + w + sinks)`` a query. State: all keys and values, those in
    sight, and ``d (d + 1)`` numbers a kv head.

    Args:
        window: w. sinks: first keys that are near to all. share: τ.

    Raises:
        ValueError: a share outside of (0, 1], a window below one, sinks below zero.

    Paper: Donhauser et al., arXiv 2502.09647.
    """

    traits = Traits(bidirectional=False, cross=False, rows="one", sign="nonnegative", flops="at most")

    def __init__(self, window: int = 256, sinks: int = 16, share: float = 0.6) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise wrong("share", str(share), "above 0, up to 1")
        self.size, self.sinks, self.share = window, sinks, share
        self.near, self.full = SlidingWindow(window, sinks), Softmax()
        self.either = AllOrHere(self.near)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor) -> Tensor:
        return self.rows(q, k, layout, slice(0, q.shape[2]), **signals)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        full, local = (mechanism.rows(q, k, layout, rows) for mechanism in (self.full, self.near))
        chosen = self.by_document(self.plain, q, k, layout)[:, :, rows, None]
        return chosen * full + (1 - chosen) * local

    def by_document(self, decide: Any, q: Tensor, k: Tensor, layout: Layout) -> Tensor:
        """``(b, h, n)``: 1 where a query attends to all keys, by ``decide`` of the last queries of one document."""
        n, m = q.shape[2], k.shape[2]
        if layout.regular:
            return decide(q, k)
        found = q.new_zeros(q.shape[:3])
        for row, tokens in alone.documents(layout, len(q), m, q.device):
            queries, one = tokens[tokens >= m - n] - (m - n), slice(row, row + 1)
            if len(queries):
                found[one, :, queries] = decide(q[one, :, queries], k[one, :, tokens])
        return found

    @torch.no_grad()
    def plain(self, q: Tensor, k: Tensor) -> Tensor:
        """By the equations, of all pairs."""
        n, m = q.shape[2], k.shape[2]
        keys = k.double().repeat_interleave(q.shape[1] // max(k.shape[1], 1), 1)
        scores = q.double() @ keys.mT * q.shape[3] ** -0.5
        i, j = torch.arange(m - n, m, device=q.device)[:, None], torch.arange(m, device=q.device)
        near = (j <= i) & ((i - j < self.size) | (j < self.sinks))
        far, count = (j <= i) & ~near, ((j <= i) & ~near).sum(1)
        mean = (scores * far).sum(3) / count.clamp(min=1)
        spread = ((scores - mean[..., None]).square() * far).sum(3) / count.clamp(min=1)
        return self.decided(scores.masked_fill(~near, -torch.inf).logsumexp(3), count, mean, spread).to(q.dtype)

    def decided(self, near: Tensor, count: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        """1 where near keys get less than τ."""
        return (near_share(near, count, mean, spread) < self.share).double()

    @torch.no_grad()
    def fast(self, q: Tensor, k: Tensor) -> Tensor:
        """The same in chunks of keys."""
        start = q.new_zeros((), dtype=torch.int64)
        return self.from_sums(q, k, Sums.none(k, start))[0]

    def from_sums(self, q: Tensor, k: Tensor, sums: Sums) -> tuple[Tensor, Sums]:
        """Decisions of the last queries over keys, the first far ones of which are summed up; all far ones, summed."""
        mean, spread, count, sums = sums.moments(q, k, self.sinks, self.size)
        near = torch.cat([self.local(q, k, some) for some in split(0, q.shape[2], ROWS)], 2) if q.shape[2] else mean
        return self.decided(near, count, mean, spread).to(q.dtype), sums

    def local(self, q: Tensor, k: Tensor, rows: slice) -> Tensor:
        """``(b, h, rows)``: the log of what near keys sum to, some queries at a time."""
        (n, d), m = q.shape[2:], k.shape[2]
        i = torch.arange(m - n, m, device=q.device)[rows]
        first = max(int(i[0]) - self.size + 1, 0)
        j = torch.cat([torch.arange(min(self.sinks, first)), torch.arange(first, max(int(i[-1]) + 1, first))]).to(i)
        keys = k[:, :, j].double().repeat_interleave(q.shape[1] // max(k.shape[1], 1), 1)
        seen = (j <= i[:, None]) & ((i[:, None] - j < self.size) | (j < self.sinks))
        scores = q[:, :, rows].double() @ keys.mT * d**-0.5
        return scores.masked_fill(~seen, -torch.inf).logsumexp(3)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor
    ) -> Tensor:
        self.check(q, k, v, layout, signals)
        route = self.by_document(self.fast, q, k, layout)
        return self.either.mix(self.near(q, k, v, layout), q, k, v, layout, route)

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Moments:
        """Nothing seen."""
        local, nothing = self.near.start(batch, device=device, dtype=dtype), torch.zeros(batch, 0, device=device)
        cache = KeyValues.empty(batch, device, dtype)
        return Moments(cache.seen, local, cache, cache.seen, nothing.double(), nothing.double())

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, Moments]:
        """Sums up the keys that leave the window, decides by them, and reads all keys where it has to."""
        self.check(q, k, v, Layout(causal=True), signals)
        _, seen = count_new(state, key_mask, k.shape[2], k.shape[0])
        local, inner = self.near.extend(q, k, v, state.local, key_mask)
        cache = state.cache.append(k, v, key_mask)
        keys = in_order(cache)[0]
        known = state.first.dim() > 2
        sums = Sums(state.count, state.first, state.second) if known else Sums.none(k, state.count)
        if cache.key_mask is None and bool((sums.count == sums.count[0]).all()):
            route, sums = self.from_sums(q, keys, sums)
        else:
            route, sums = self.row_by_row(q, keys, seen, sums, key_mask)
        layout = Layout(causal=True, key_mask=cache.key_mask)
        out = self.either.mix(local, q, cache.k, cache.v, layout, route)
        return out, Moments(seen, inner, cache, sums.count, sums.first, sums.second)

    def row_by_row(
        self, q: Tensor, keys: Tensor, seen: Tensor, sums: Sums, key_mask: Tensor | None
    ) -> tuple[Tensor, Sums]:
        """Sequences of a batch that stand at different places, one after the other."""
        route, found = q.new_zeros(q.shape[:3]), []
        for row, length in enumerate(seen.tolist()):
            one = slice(row, row + 1)
            real = torch.arange(q.shape[2], device=q.device) if key_mask is None else key_mask[row].nonzero()[:, 0]
            decided, own = self.from_sums(q[one, :, real], keys[one, :, :length], sums.of(one))
            route[one, :, real] = decided
            found.append(own)
        parts = zip(*((x.count, x.first, x.second) for x in found), strict=True)
        return route, Sums(*(torch.cat(part) for part in parts))

    def cost(self, shape: Shape, layout: Layout = Layout(causal=True)) -> Cost:
        full, local, d = self.full.cost(shape, layout), self.near.cost(shape, layout), shape.head_dim
        n, m, near = shape.n, shape.keys, self.size + self.sinks + min(shape.n, ROWS)
        slots = -(-max(m, 1) // CHUNK + 1) * CHUNK
        each = 2 * d * (d + 1 + CHUNK) * (slots + CHUNK) + 2 * n * d * near
        summed = 2 * d * d * (slots + CHUNK)
        flops = full.flops + local.flops + shape.batch * (shape.heads * each + shape.groups * summed)
        state = full.state_bytes + local.state_bytes + 8 * shape.batch * (1 + shape.groups * d * (d + 1))
        return Cost(flops, full.bytes + local.bytes, state)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("window of 7", cls(7, 2, 0.5), heads=3, kv_heads=3),
            Example("window of 3, grouped", cls(3, 0, 0.3), heads=4, kv_heads=2),
        ]


def near_share(near: Tensor, count: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """The share that near keys get, ``near (b, h, n)`` being the log of what they sum to."""
    return torch.sigmoid(near - (count.log() + mean + spread / 2))


@dataclass(frozen=True)
class Sums:
    """Of the first far keys, count ``(b,)``, Σ k ``(b, g, d)`` and Σ k kᵀ ``(b, g, d, d)``, in float64."""

    count: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def none(cls, k: Tensor, count: Tensor) -> Sums:
        """Of no keys like ``k (b, g, m, d)``."""
        b, g, _, d = k.shape
        first = torch.zeros(b, g, d, dtype=torch.float64, device=k.device)
        return cls(torch.zeros(b, dtype=torch.int64, device=count.device), first, first[..., None].repeat(1, 1, 1, d))

    def of(self, rows: slice) -> Sums:
        """Those of some sequences."""
        return Sums(self.count[rows], self.first[rows], self.second[rows])

    def moments(self, q: Tensor, k: Tensor, sinks: int, window: int) -> tuple[Tensor, Tensor, Tensor, Sums]:
        """Mean and variance of each query's scores of far keys, their number, and the sums of all far keys.

        Query i has the keys from ``sinks`` to ``i − window``. They are taken in chunks: those before a query's chunk by
        their sums, those in it by their scores.

        Shapes: ``q (b, h, n, d)``, the last of ``k (b, g, m, d)`` -> ``(b, h, n)`` twice, ``(n,)``.
        """
        (b, h, n, d), m, known = q.shape, k.shape[2], int(self.count[0]) if len(self.count) else 0
        ends = (torch.arange(m - n, m, device=q.device) - window + 1 - sinks).clamp(min=0)
        last = int(ends[-1]) if n else known
        keys = k[:, :, sinks + known : sinks + max(last, known)].double()
        more = -keys.shape[2] % CHUNK
        chunks = torch.nn.functional.pad(keys, (0, 0, 0, more)).unflatten(2, (-1, CHUNK))
        outer = chunks.mT @ chunks
        first, second = (
            torch.cat([old[:, :, None], old[:, :, None] + new.cumsum(2)], 2)
            for old, new in ((self.first, chunks.sum(3)), (self.second, outer))
        )
        total = Sums(self.count.new_full((b,), max(last, known)), first[:, :, -1], second[:, :, -1])
        found = [q.new_zeros(b, h, n, dtype=torch.float64) for _ in range(2)]
        group, wide = h // max(k.shape[1], 1), q.double() * d**-0.5
        beyond = (ends - known).clamp(min=0)
        for chunk in torch.div(beyond, CHUNK, rounding_mode="floor").unique().tolist():
            at = (torch.div(beyond, CHUNK, rounding_mode="floor") == chunk).nonzero()[:, 0]
            some = wide[:, :, at]
            one = (some * first[:, :, chunk].repeat_interleave(group, 1)[:, :, None]).sum(3)
            two = ((some @ second[:, :, chunk].repeat_interleave(group, 1)) * some).sum(3)
            if chunk < chunks.shape[2]:
                near = some @ chunks[:, :, chunk].repeat_interleave(group, 1).mT
                inside = torch.arange(CHUNK, device=q.device) < (beyond[at] - chunk * CHUNK)[:, None]
                one, two = one + (near * inside).sum(3), two + (near.square() * inside).sum(3)
            found[0][:, :, at], found[1][:, :, at] = one, two
        count = ends.clamp(min=1)
        mean = found[0] / count
        return mean, (found[1] / count - mean.square()).clamp(min=0), ends, total
