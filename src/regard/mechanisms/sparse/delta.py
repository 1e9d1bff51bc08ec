"""Delta correction: a sparse mechanism, put right by dense attention at every γ-th query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.build import build_text
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Mechanism, Traits
from regard.core.state import State, count_new
from regard.kernels.dense import Piece, over
from regard.kernels.rows import ordered
from regard.kernels.tiled import split
from regard.mechanisms.cached import KeyValues
from regard.mechanisms.scored.softmax import Softmax

TILE = 256  # anchors whose masks of their own neighbourhood are formed together


@dataclass(frozen=True)
class Corrected(State):
    """The sparse mechanism's state, all keys and values for the dense rows, and the correction in force.

    Args:
        sparse: the state of the sparse mechanism. cache: every key and value so far.
        delta: ``(batch, heads, e)``, dense minus sparse output of the last anchor; three axes, the last two of size
            zero, before the first token.
    """

    sparse: State
    cache: KeyValues
    delta: Tensor


@published(
    "delta",
    family="sparse",
    row=260,
    title="Delta Attention: Fast and Accurate Sparse Attention Inference by Delta Correction",
    arxiv="2505.11254",
    year=2025,
    aliases=("delta_attention", "delta_correction"),
    fidelity="authors' code",
    claim=(
        Claim("γ = 1 is dense attention", cells="sparse.gamma_one", holds="common.within(most=1e-12)"),
        Claim("dense scores are 1/γ of all", cells="sparse.dense_rows", holds="sparse.is_one_in_gamma"),
        Claim(
            ("in a trained model the correction wins back at least half of the recall that sinks and window lose"),
            cells="sparse.in_a_model",
            holds="sparse.wins_half_back",
        ),
        Claim(
            "in SmolLM2 it wins back at least half of the recall that a context loses that is read by sinks and window",
            cells="delta_recall.recalls",
            holds="delta_recall.wins_half_back",
        ),
    ),
)
class Delta(Mechanism):
    """A sparse mechanism plus, for each group of queries, what it misses at the group's first.

        A_i = S_i + (D_{g(i)} − S_{g(i)}),   g(i) = γ ⌊p_i / γ⌋

    A is ``weights``; S is the sparse mechanism ``of``, D is softmax attention to all earlier keys, p counts the real
    tokens of the sequence or document, g(i) is the *anchor* of i. Rows sum to what S's do, entries may be negative.
    The last ``tail`` queries of each call are rows of D. ``extend`` remembers the correction in force.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; causal only.
    Cost: that of S, and ``4 m max(d, e)`` FLOPs a head for each anchor. State: that of S, all keys and values, and the
    correction, e numbers a head.

    Args:
        of: the sparse mechanism, or its text. gamma: γ, at least 1.
        tail: number of last queries of every call that are dense. With any, decoding is dense, as the paper's is, and
            extending by chunks is not one call.

    Raises:
        ValueError: ``gamma`` below one, ``tail`` below zero, a mechanism that is not causal.

    Paper: Willette et al., arXiv 2505.11254; there the tail is what is left over by whole groups and 128 or γ more.
    """

    def __init__(self, of: str | Mechanism = "window(size=256, sinks=4)", gamma: int = 64, tail: int = 0):
        super().__init__()
        if gamma < 1:
            raise wrong("gamma", str(gamma), "at least 1: every query an anchor")
        if tail < 0:
            raise wrong("tail", str(tail), "0 or more queries")
        of = build_text(of) if isinstance(of, str) else of
        if not of.traits.causal:
            raise wrong("of", type(of).__name__, "a causal mechanism")
        self.sparse, self.dense, self.gamma, self.tail = of, Softmax(), gamma, tail
        self.signals = dict(of.signals)
        self.traits = replace(
            of.traits,
            bidirectional=False,
            cross=False,
            suffix=of.traits.suffix and gamma == 1,
            resumable=of.traits.resumable and not tail,
            sign=None,
            time="quadratic",
            state="linear",
            masked=False,
            biased=False,
            equivariant=False,
        )

    traits = Traits(bidirectional=False, cross=False)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        n, m = q.shape[2], k.shape[2]
        sparse, dense = self.sparse.weights(q, k, layout, **signals), self.dense.weights(q, k, layout)
        anchors = self.anchors(layout.query_positions(n, m, q.device), real(layout, n, m, q))
        own = last_anchor(anchors)[:, None, :, None].clamp(min=0)
        corrected = sparse + (dense - sparse).take_along_dim(own, dim=2)
        return torch.where(self.trailing(layout, n, m, q)[:, None, :, None], dense, corrected)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        n, m = q.shape[2], k.shape[2]
        own = last_anchor(self.anchors(layout.query_positions(n, m, q.device), real(layout, n, m, q)))
        start, stop, _ = rows.indices(n)
        first = max(int(own[:, start:stop].amin()), 0) if stop > start else start
        sparse = self.sparse.rows(q, k, layout, slice(first, stop), **signals)
        dense = self.dense.rows(q, k, layout, slice(first, stop))
        index = (own[:, None, start:stop, None] - first).clamp(min=0)
        corrected = sparse[:, :, start - first :] + (dense - sparse).take_along_dim(index, dim=2)
        trailing = self.trailing(layout, n, m, q)[:, None, start:stop, None]
        return torch.where(trailing, dense[:, :, start - first :], corrected)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor
    ) -> Tensor:
        self.check(q, k, v, layout, signals)
        n, m = q.shape[2], k.shape[2]
        tokens = real(layout, n, m, q)
        anchors = self.anchors(layout.query_positions(n, m, q.device), tokens)
        sparse = self.sparse(q, k, v, layout, **signals)
        return self.correct(sparse, q, k, v, layout, anchors, None)[0]

    def anchors(self, positions: Tensor, tokens: Tensor) -> Tensor:
        """``(b or 1, n)`` bool: the first query of each group."""
        return tokens & (positions % self.gamma == 0)

    def trailing(self, layout: Layout, n: int, m: int, like: Tensor) -> Tensor:
        """``(b, n)`` bool: the last ``tail`` real queries of each sequence or document."""
        keys, segments = (x if x is None else x.flip(1) for x in (layout.key_mask, layout.segments))
        after = Layout(key_mask=keys, segments=segments).positions(m, like.device).flip(1)[:, max(m - n, 0) :]
        after = torch.nn.functional.pad(after, (n - after.shape[1], 0))
        return real(layout, n, m, like) & (after < self.tail)

    def correct(
        self,
        sparse: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        anchors: Tensor,
        before: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """``(the corrected output, the correction in force at its end (b, h, e))``.

        ``before (b, h, e)`` is the correction in force at the start, None for none.
        """
        trailing = self.trailing(layout, q.shape[2], k.shape[2], q)
        slots = (anchors | trailing).any(0).nonzero()[:, 0]
        if not len(slots):
            kept = sparse.new_zeros(*sparse.shape[:2], sparse.shape[3]) if before is None else before
            return sparse + kept[:, :, None], kept
        dense = dense_rows(q, k, v, layout, slots)
        table = dense - sparse[:, :, slots]
        table = torch.cat([torch.zeros_like(table[:, :, :1]) if before is None else before[:, :, None], table], dim=2)
        place = torch.zeros_like(anchors, dtype=torch.int64)
        place[:, slots] = torch.arange(1, len(slots) + 1, device=q.device)
        rows = torch.arange(anchors.shape[1], device=q.device)
        own = torch.where(trailing, rows, last_anchor(anchors))
        index = torch.where(own >= 0, place.gather(1, own.clamp(min=0)), 0).expand(q.shape[0], -1)
        out = sparse + ordered(table, index)
        last = torch.where(anchors, place, 0).amax(1).expand(q.shape[0])
        return out, table.take_along_dim(last[:, None, None, None], dim=2)[:, :, 0]

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Corrected:
        """Nothing seen."""
        return Corrected(
            torch.zeros(batch, dtype=torch.int64, device=device),
            self.sparse.start(batch, device=device, dtype=dtype),
            KeyValues.empty(batch, device, dtype),
            torch.empty(batch, 0, 0, device=device, dtype=dtype),
        )

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, Corrected]:
        """The sparse mechanism's new rows, corrected; groups go on over the border of the chunks."""
        self.check(q, k, v, Layout(causal=True), signals)
        positions, seen = count_new(state, key_mask, k.shape[2], k.shape[0])
        sparse, inner = self.sparse.extend(q, k, v, state.sparse, key_mask, **signals)
        cache = state.cache.append(k, v, key_mask)
        tokens = torch.ones_like(positions, dtype=torch.bool) if key_mask is None else key_mask
        anchors = self.anchors(positions, tokens)
        before = state.delta if state.delta.shape[1] else None
        layout = Layout(causal=True, key_mask=cache.key_mask)
        out, delta = self.correct(sparse, q, cache.k, cache.v, layout, anchors, before)
        return out, Corrected(seen, inner, cache, delta)

    def cost(self, shape: Shape, layout: Layout = Layout(causal=True)) -> Cost:
        inner, heads, wide = (
            self.sparse.cost(shape, layout),
            shape.batch * shape.heads,
            max(shape.head_dim, shape.values),
        )
        rows = self.dense_slots(shape.n, shape.keys)
        cells = sum((p.rows.stop - p.rows.start) * (p.cols.stop - p.cols.start) for p in dense_pieces(rows, shape.keys))
        cache = shape.cache_bytes
        state = inner.state_bytes + cache + heads * shape.values * shape.itemsize
        return Cost(inner.flops + 4 * heads * cells * wide, inner.bytes + shape.io_bytes, state)

    def dense_slots(self, n: int, m: int) -> Tensor:
        """The key slots of the dense queries of a plain causal call."""
        position = torch.arange(max(m - n, 0), m)
        return position[(position % self.gamma == 0) | (position >= m - self.tail)]

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("γ = 5 over a window", cls("window(size=7)", gamma=5), heads=3, kv_heads=3),
            Example("γ = 1, grouped", cls("window(size=3, sinks=2)", gamma=1), heads=4, kv_heads=2),
            Example("γ = 7, tail of 3", cls("window(size=5)", gamma=7, tail=3)),
        ]


def real(layout: Layout, n: int, m: int, like: Tensor) -> Tensor:
    """``(b, n)`` bool: queries that are tokens of the sequence, neither padding nor before the first key."""
    if layout.key_mask is None:
        everywhere = torch.ones(like.shape[0], min(n, m), dtype=torch.bool, device=like.device)
    else:
        everywhere = layout.key_mask[:, max(m - n, 0) :]
    return torch.nn.functional.pad(everywhere, (n - everywhere.shape[1], 0))


def last_anchor(anchors: Tensor) -> Tensor:
    """``(b, n)`` int64: the nearest anchor at or before each query, -1 for none."""
    rows = torch.arange(anchors.shape[1], device=anchors.device)
    return torch.where(anchors, rows, -1).cummax(1).values


def dense_rows(q: Tensor, k: Tensor, v: Tensor, layout: Layout, slots: Tensor) -> Tensor:
    """Causal softmax attention of the queries ``slots`` alone, ``(b, h, slots, e)``."""
    n, m = q.shape[2], k.shape[2]
    places = slots + (m - n)
    pieces = [restricted(piece, places, layout) for piece in dense_pieces(places, m)]
    return over(q[:, :, slots].contiguous(), k.contiguous(), v.contiguous(), pieces).out


def dense_pieces(places: Tensor, m: int) -> Iterator[Piece]:
    """Queries at the key slots ``places``: for each tile of them, what all of it sees, then what only some does."""
    for rows in split(0, len(places), TILE):
        own = places[rows]
        shared, last = (min(max(int(own[end]) + 1, 0), m) for end in (0, -1))
        if shared:
            yield Piece(rows, slice(0, shared))
        if last > shared:
            mask = torch.arange(shared, last, device=places.device) <= own[:, None]
            yield Piece(rows, slice(shared, last), mask=mask[None, None])


def restricted(piece: Piece, places: Tensor, layout: Layout) -> Piece:
    """The piece without padding, within its queries' documents, and without what a mask hides."""
    mask = piece.mask
    if layout.key_mask is not None:
        keys = layout.key_mask[:, None, None, piece.cols]
        mask = keys if mask is None else mask & keys
    if layout.segments is not None:
        own = layout.segments[:, places[piece.rows].clamp(min=0)]
        same = own[:, None, :, None] == layout.segments[:, None, None, piece.cols]
        mask = same if mask is None else mask & same
    if layout.mask is not None:
        n, m = layout.mask.shape[2:]
        given = layout.mask[..., piece.cols].index_select(2, places[piece.rows] - (m - n))
        mask = given if mask is None else mask & given
    return replace(piece, mask=mask)
