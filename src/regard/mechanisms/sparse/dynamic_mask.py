"""Dynamic mask attention: each key has a score of its own, and a query sees the keys that score best so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layer import LayerSpec, Norm
from regard.core.layout import Layout
from regard.core.mechanism import (
    Example,
    Mechanism,
    Signal,
    Traits,
    accumulate_dtype,
    masked_softmax,
    repeat_heads,
)
from regard.core.state import State, count_new
from regard.kernels import dense
from regard.kernels import packing as alone
from regard.kernels.rows import taken
from regard.kernels.tiled import split

TILE = 128
"""New tokens that are taken in at a time."""


@dataclass(frozen=True)
class Best(State):
    """The keys that score best so far, of each kv head its own.

    Args:
        k, v: ``(batch, kv_heads, slots, d)`` and ``(…, e)``, in the order of their tokens. score: ``(batch, kv_heads,
            slots)``, −∞ where a slot is empty. Four axes, or three, the last ones of size zero, before the first token.
    """

    k: Tensor
    v: Tensor
    score: Tensor


@published(
    "dynamic_mask",
    family="sparse",
    row=83,
    title="Trainable Dynamic Mask Sparse Attention",
    arxiv="2508.02124",
    year=2025,
    aliases=("dma", "dynamic_mask_attention", "doge"),
    fidelity="third-party code",
    claim=Claim(
        text="decoding from a cache of w keys is exact, and its state stops growing",
        cells="routed.constant_cache",
        holds="routed.cache_is_constant",
    ),
)
class DynamicMask(Mechanism):
    """Each query attends to the w keys up to it that have the highest scores of their own, which are added.

        A_i = softmax over T_i of (q_i · k_j / √d + δ_j),   T_i = the w largest δ_j with j ≤ i, of equal ones the newest

    A is ``weights``, δ the signal ``score``, w ``keep``. As δ is of the key alone, a key that has left T never returns:
    prefill walks through tiles of tokens with w keys at hand, and decoding keeps w keys, exactly.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)``, ``score (b, g, m)`` -> ``(b, h, n, e)``; causal.
    Cost: ``2 n (w + 128) (d + 1 + e)`` FLOPs a head at most. State: w keys, values and scores of each kv head.

    Args:
        keep: w, keys for each query.

    Raises:
        ValueError: w below one.

    In a block δ is ``exp(a softplus(W v))`` of the values of all kv heads, with a for each, zero at first, so that all
    scores are one and T a window; queries and keys are normed there.

    Paper: Shi et al., arXiv 2508.02124; w 2,048. As the Doge model of Transformers has it.
    """

    signals = MappingProxyType(
        {
            "score": Signal(
                "the larger, the longer the key stays, and the more attention it gets",
                heads="kv_heads",
                form="grown",
                rate=True,
                of="value",
            )
        }
    )
    layer = LayerSpec(scored=Norm())
    traits = Traits(
        bidirectional=False,
        cross=False,
        rows="one",
        sign="nonnegative",
        time="linear",
        state="constant",
        flops="at most",
    )

    def __init__(self, keep: int = 2048) -> None:
        super().__init__()
        if keep < 1:
            raise wrong("keep", str(keep), "at least 1 key")
        self.keep = keep

    def support(
        self, n: int, m: int, layout: Layout, device: torch.device | str = "cpu", rows: slice | None = None
    ) -> Tensor:
        return layout.among_tokens(n, m, device, rows)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(True), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        score, (n, m) = signals["score"], (q.shape[2], k.shape[2])
        seen = self.support(n, m, layout, q.device)
        past = self.support(m, m, Layout(True, layout.key_mask, layout.segments), q.device)
        other, number = score[:, :, None], torch.arange(m, device=q.device)
        better = (other > score[..., None]) | ((other == score[..., None]) & (number > number[:, None]))
        count = past.to(q.dtype) @ better.mT.to(q.dtype)  # of each query and key: how many earlier keys score better
        first = max(n - m, 0)
        kept = torch.nn.functional.pad(count[:, :, m - n + first :] < self.keep, (0, 0, first, 0))
        scores = q @ repeat_heads(k, q.shape[1]).mT * q.shape[3] ** -0.5 + repeat_heads(score, q.shape[1])[:, :, None]
        return masked_softmax(scores, seen & repeat_heads(kept, q.shape[1]))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(True), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        score, (n, m) = signals["score"], (q.shape[2], k.shape[2])
        if layout.regular:
            return self.along(q, k, v, score)
        out = q.new_zeros(*q.shape[:3], v.shape[3])
        for row, tokens in alone.documents(layout, q.shape[0], m, k.device):
            queries = tokens[tokens >= m - n] - (m - n)
            one = slice(row, row + 1)
            if queries.numel():
                given = (x[one, :, tokens] for x in (k, v, score))
                out[row, :, queries] = self.along(q[one, :, queries], *given)[0]
        return out

    def along(self, q: Tensor, k: Tensor, v: Tensor, score: Tensor) -> Tensor:
        """The last queries of one document, its keys taken in from the first on."""
        n, m = q.shape[2], k.shape[2]
        blind = max(n - m, 0)
        held = Best(torch.zeros(len(q)), k[:, :, :0], v[:, :, :0], score[:, :, :0])
        parts = [q.new_zeros(*q.shape[:2], blind, v.shape[3]) + sum(x[..., :0].sum() for x in (q, k, v, score))]
        past = m - n + blind
        for some in [*split(0, past, TILE), *split(past, m, TILE)]:
            queries = q[:, :, some.start - (m - n) : some.stop - (m - n)] if some.start >= past else None
            part, held = self.step(queries, k[:, :, some], v[:, :, some], score[:, :, some], held, None)
            parts += [] if part is None else [part]
        return torch.cat(parts, 2)

    def step(
        self, q: Tensor | None, k: Tensor, v: Tensor, score: Tensor, held: Best, key_mask: Tensor | None
    ) -> tuple[Tensor | None, Best]:
        """``(rows of the new tokens, the best keys with them)``; no rows without queries."""
        before, new = held.score.shape[2], k.shape[2]
        keys, values, scores = (torch.cat(pair, 2) for pair in ((held.k, k), (held.v, v), (held.score, score)))
        if key_mask is not None:
            gone = torch.nn.functional.pad(key_mask, (before, 0), value=True)[:, None]
            scores = scores.masked_fill(~gone, -torch.inf)
        kept = self.kept(scores, before, new)
        out = None if q is None else attended(q, keys, values, scores, kept)
        last = kept[:, :, -1]
        slots = min(int(last.sum(2).max()), self.keep) if last.numel() else 0
        place = torch.argsort(~last, dim=2, stable=True)[:, :, :slots]
        there = last.gather(2, place)
        keys, values = (taken(x, place.flatten(0, 1)) for x in (keys, values))
        scores = scores.gather(2, place).masked_fill(~there, -torch.inf)
        return out, Best(held.seen, keys, values, scores)

    def kept(self, scores: Tensor, before: int, new: int) -> Tensor:
        """``(b, g, new, before + new)`` bool: which of the held and of the new keys each new query sees."""
        order = scores.flip(2).argsort(dim=2, descending=True, stable=True)  # of equal scores the newest first
        order = before + new - 1 - order
        place = torch.arange(before, before + new, device=scores.device)
        there = (order[:, :, None] <= place[:, None]) & (scores.gather(2, order)[:, :, None] > -torch.inf)
        best = there & (there.cumsum(3) <= self.keep)
        return torch.zeros_like(best).scatter_(3, order[:, :, None].expand_as(best), best)

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Best:
        """No keys yet."""
        nothing = torch.zeros(batch, 0, 0, 0, device=device, dtype=dtype)
        return Best(torch.zeros(batch, dtype=torch.int64, device=device), nothing, nothing, nothing.flatten(2))

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, Best]:
        """Takes in the new tokens, a tile at a time, and lets the worst keys go."""
        self.check(q, k, v, Layout(causal=True), signals)
        _, seen = count_new(state, key_mask, k.shape[2], k.shape[0])
        score, parts = signals["score"], []
        held = state if state.k.shape[1] else Best(seen, k[:, :, :0], v[:, :, :0], score[:, :, :0])
        for some in split(0, k.shape[2], TILE):
            mask = None if key_mask is None else key_mask[:, some]
            part, held = self.step(q[:, :, some], k[:, :, some], v[:, :, some], score[:, :, some], held, mask)
            parts.append(part)
        return torch.cat(parts, 2) if parts else q.new_zeros(*q.shape[:3], v.shape[3]), Best(
            seen, held.k, held.v, held.score
        )

    def cost(self, shape: Shape, layout: Layout = Layout(True)) -> Cost:
        width = min(self.keep, shape.keys) + min(TILE, shape.n)
        flops = 4 * shape.batch * shape.heads * shape.n * width * max(shape.head_dim + 1, shape.values)
        slots = shape.batch * shape.groups * min(shape.keys, self.keep)
        return Cost(flops, shape.io_bytes, slots * (shape.head_dim + shape.values + 1) * shape.itemsize)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("5 keys", cls(5), heads=3, kv_heads=3),
            Example("31 keys, grouped", cls(31), heads=4, kv_heads=2),
        ]


def attended(q: Tensor, k: Tensor, v: Tensor, score: Tensor, kept: Tensor) -> Tensor:
    """Softmax attention to the kept keys, the score added to products as one more coordinate of each key."""
    wide = accumulate_dtype(q.dtype)
    added = score.masked_fill(score == -torch.inf, 0)[..., None].to(wide)
    queries = torch.cat([q.to(wide) * q.shape[3] ** -0.5, torch.ones_like(q[..., :1], dtype=wide)], 3)
    keys = torch.cat([k.to(wide), added], 3)
    piece = dense.Piece(slice(0, q.shape[2]), slice(0, k.shape[2]), mask=repeat_heads(kept, q.shape[1]))
    return dense.over(queries, keys, v.to(wide), [piece], 1.0).out.to(q.dtype)
