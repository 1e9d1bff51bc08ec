"""Native sparse attention over mean keys: compressed blocks, the best in full, and a window, mixed by gates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.mechanism import Example, Signal, Traits, accumulate_dtype, masked_softmax, repeat_heads
from regard.kernels import band, chosen, dense
from regard.kernels import packing as alone
from regard.kernels.tiled import split
from regard.mechanisms.sparse.routed import Known, Routed
from regard.patterns.choice import Choice, Rows
from regard.routers.base import Summary, means, products
from regard.routers.blocks import Mean

TILE = 512
"""Queries whose window, or whose compressed keys, are masked at a time."""


class Compressed(Mean):
    """The attention that a group's heads pay to the compressed block, in the mean; one choice for the group.

    ``s_ij = mean over the group of softmax_j(q_i · mean(K_j) / √d)``, over the blocks that are complete at i.
    """

    shared = True

    def scores(self, q: Tensor, summary: Summary, rows: Rows) -> Tensor:
        return repeat_heads(self.shared_scores(q, summary, rows), q.shape[1])

    def shared_scores(self, q: Tensor, summary: Summary, rows: Rows) -> Tensor:
        """The same of each group, ``(b, g, n, blocks)``."""
        paid = masked_softmax(products(q, summary[0]) * q.shape[3] ** -0.5, complete(rows, summary[0].shape[2]))
        return paid.unflatten(1, (summary[0].shape[1], -1)).mean(2)

    @torch.no_grad()
    def forward(self, q: Tensor, k: Tensor, rows: Rows, summary: Summary | None = None) -> Choice:
        summary, wide = self.summary(k) if summary is None else summary, accumulate_dtype(q.dtype)
        choice = self.choose(self.shared_scores(q.to(wide), summary, rows), rows)
        return Choice(repeat_heads(choice.index, q.shape[1]), rows)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [Sample("a choice for each group", cls(block=4, budget=4))]


def complete(rows: Rows, blocks: int) -> Tensor:
    """``(batch or 1, 1, n, blocks)`` bool: blocks whose last key the query sees; all of them where it is not causal."""
    ends = torch.arange(1, blocks + 1, device=rows.here.device) * rows.block - 1
    return (ends <= rows.here[:, None, :, None]) | (not rows.causal)


@published(
    "mean_nsa",
    family="sparse",
    title="Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention",
    arxiv="2502.11089",
    year=2025,
    aliases=("pooled_native_sparse",),
    fidelity="third-party code",
    claim=Claim(
        text="its layer is faster than dense attention at 16k tokens on a CPU",
        cells="routed.native",
        holds="routed.native_is_faster",
    ),
)
class NativeSparse(Routed):
    """Three attentions of one query, each with a gate: to compressed blocks, to the best blocks, to a window.

        A_i = c_i C_i + s_i S_i + w_i W_i

    C is softmax attention over the mean keys of the blocks that are complete at i, its weight on a block shared by the
    block's tokens; S is softmax attention to the ``budget`` blocks that C pays most, in the mean of the heads of a
    group, which choose together, the own, the previous and the first always among them; W to the last ``window`` keys.
    c, s and w are the signals ``compressed``, ``selected`` and ``near``.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)``, gates ``(b, h, n)`` -> ``(b, h, n, e)``; causal.
    Cost: ``4 n (m / block + budget · block + window) max(d, e)`` FLOPs a head, and those of the choice. State: all keys
    and values, and the mean key of each block.

    Args:
        block: keys in a block. budget: blocks in full for each query. window: nearest keys.

    Raises:
        ValueError: a block or window below one, a budget below the three forced blocks.

    Paper: Yuan et al., arXiv 2502.11089: blocks of 64, 16 of them, a window of 512. Blocks are compressed by their mean
    and branches share keys, as flash-linear-attention has it; the paper's own is `LearnedNativeSparse`.
    """

    signals = MappingProxyType(
        {
            "compressed": Signal("the share of attention to compressed blocks", "query", "heads", low=0, high=1),
            "selected": Signal("the share of attention to chosen blocks", "query", "heads", low=0, high=1),
            "near": Signal("the share of attention to the window", "query", "heads", low=0, high=1),
        }
    )
    traits = Traits(bidirectional=False, cross=False, sign="nonnegative", flops="at most")

    def __init__(self, block: int = 64, budget: int = 16, window: int = 512) -> None:
        if window < 1:
            raise wrong("window", str(window), "at least 1")
        traits = self.traits
        super().__init__(Compressed(block, budget))
        self.window, self.traits = window, traits

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        start, stop, _ = rows.indices(q.shape[2])
        some, maps = slice(start, stop), []
        for of in ("compressed", "selected", "near"):
            gate = signals[of][:, :, some, None]
            maps.append(gate * self.each(of, q, k, layout, some))
        return maps[0] + maps[1] + maps[2]

    def each(self, of: str, q: Tensor, k: Tensor, layout: Layout, rows: slice) -> Tensor:
        """Some rows of the map of one branch."""
        m = k.shape[2]
        identity = torch.eye(m, dtype=q.dtype, device=q.device).expand(*k.shape[:2], m, m)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            here = torch.arange(k.shape[2] - q.shape[2], k.shape[2], device=q.device)[None]
            return self.plain(of, q, k, self.router.rows(here, k.shape[2], True)) @ repeat_heads(v, q.shape[1])

        whole = run(q, k, identity) if layout.regular else alone.per_sequence(run, q, k, identity, layout)
        return whole[:, :, rows]

    def plain(self, of: str, q: Tensor, k: Tensor, rows: Rows) -> Tensor:
        """The map of one branch over the keys of one document, by its equation."""
        keys, places = repeat_heads(k, q.shape[1]), torch.arange(k.shape[2], device=q.device)
        scale = q.shape[3] ** -0.5
        if of == "compressed":
            pooled = means(keys, rows.block)
            paid = masked_softmax(q @ pooled.mT.to(q.dtype) * scale, complete(rows, pooled.shape[2]))
            return paid.repeat_interleave(rows.block, 3)[..., : k.shape[2]] / rows.block
        if of == "selected":
            return masked_softmax(q @ keys.mT * scale, self.router(q, k, rows).spread())
        return masked_softmax(q @ keys.mT * scale, near(rows.here, places, self.window))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(True), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)

        def branch(of: str) -> Tensor:
            def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                here = torch.arange(k.shape[2] - q.shape[2], k.shape[2], device=q.device)[None]
                return self.fast(of, q, k, v, self.router.rows(here, k.shape[2], True), None)

            return run(q, k, v) if layout.regular else alone.per_sequence(run, q, k, v, layout)

        return self.mixed(branch, signals)

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, Known]:
        """Sums up the blocks that the new tokens complete, and attends to them, to the chosen ones and to the last."""
        self.check(q, k, v, Layout(causal=True), signals)
        grown, here = self.grown(k, v, state, key_mask)
        keys, values, summary = self.all_of(grown)
        rows = self.router.rows(here, keys.shape[2], True)
        return self.mixed(lambda of: self.fast(of, q, keys, values, rows, summary), signals), grown

    def mixed(self, branch: Any, signals: dict[str, Tensor]) -> Tensor:
        """The branches by their gates."""
        first, second, third = (signals[of][..., None] * branch(of) for of in ("compressed", "selected", "near"))
        return first + second + third

    def fast(self, of: str, q: Tensor, k: Tensor, v: Tensor, rows: Rows, summary: Summary | None) -> Tensor:
        """The output of one branch over the keys of one document."""
        if of == "selected":
            return self.selected(q, k, v, rows, lambda some: self.router(q[:, :, some], k, rows.at(some), summary))
        if of == "compressed":
            whole = k.shape[2] // rows.block * rows.block
            keys, values = (means(x[:, :, :whole], rows.block).to(q.dtype) for x in (k, v))
            parts = [
                dense.Piece(some, slice(0, keys.shape[2]), mask=complete(rows.at(some), keys.shape[2]), alone=True)
                for some in split(0, rows.n, TILE)
            ]
            return dense.over(q, keys, values, parts if whole else []).out
        return self.windowed(q, k, v, rows)

    def selected(self, q: Tensor, k: Tensor, v: Tensor, rows: Rows, choose: Callable[[slice], Choice]) -> Tensor:
        """Attention to the blocks that ``choose`` gives some queries.

        The first queries see no more blocks than the budget, which are all chosen: theirs is dense attention.
        """
        first, n = int(rows.here[0, 0]) if rows.n else 0, rows.n
        if len(rows.here) > 1 or first != rows.m - n:
            return chosen.attend(q, k, v, choose(slice(0, n))).out
        early, outs = self.early(n, rows.m), []
        if early:
            past = slice(0, max(first + early, 0))
            outs = [dense.attend(q[:, :, :early], k[:, :, past], v[:, :, past], Layout(causal=True))]
        if early < n or not n:
            late = slice(early, n)
            outs.append(chosen.attend(q[:, :, late], k, v, choose(late)).out)
        return torch.cat(outs, 2) if len(outs) > 1 else outs[0]

    def windowed(self, q: Tensor, k: Tensor, v: Tensor, rows: Rows) -> Tensor:
        """Attention to the window."""
        if rows.n > TILE and len(rows.here) == 1 and int(rows.here[0, 0]) == rows.m - rows.n:
            return band.attend_lse(q, k, v, self.window, True).out
        return dense.over(q, k, v, list(self.nearest(rows))).out

    def nearest(self, rows: Rows):
        """The window of some queries at a time."""
        for some in split(0, rows.n, TILE):
            here = rows.here[:, some]
            first = max(int(here.min()) - self.window + 1, 0)
            keys = slice(first, min(int(here.max()) + 1, rows.m))
            if keys.stop > keys.start:
                places = torch.arange(keys.start, keys.stop, device=here.device)
                yield dense.Piece(some, keys, mask=near(here, places, self.window), alone=True)

    def early(self, n: int, m: int) -> int:
        """How many of the last ``n`` of ``m`` tokens see no more blocks than the budget."""
        return min(max(self.router.budget * self.router.block - (m - n), 0), n)

    def selected_cost(self, shape: Shape, layout: Layout) -> Cost:
        """That of the chosen blocks with their scores, of the first queries without a choice."""
        n, m = shape.n, shape.keys
        early = self.early(n, m)
        whole, first = Routed.cost(self, shape, layout), 4 * early * (m - n + early) * max(shape.head_dim, shape.values)
        flops = Routed.cost(self, replace(shape, n=n - early, m=m), layout).flops if early < n else 0
        return replace(whole, flops=flops + shape.batch * shape.heads * first)

    def cost(self, shape: Shape, layout: Layout = Layout(True)) -> Cost:
        routed = self.selected_cost(shape, layout)
        blocks, width = shape.keys // self.router.block, min(shape.keys, self.window + min(shape.n, TILE))
        more = 4 * shape.n * (blocks + width) * max(shape.head_dim, shape.values)
        return Cost(routed.flops + shape.batch * shape.heads * more, routed.bytes, routed.state_bytes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("blocks of 4, grouped", cls(4, 4, 6), heads=4, kv_heads=2),
            Example("blocks of 33", cls(33, 3, 17), heads=3, kv_heads=3),
        ]


def near(here: Tensor, places: Tensor, window: int) -> Tensor:
    """``(batch or 1, 1, n, keys)`` bool: the last ``window`` keys of each query."""
    distance = here[:, None, :, None] - places
    return (distance >= 0) & (distance < window)
