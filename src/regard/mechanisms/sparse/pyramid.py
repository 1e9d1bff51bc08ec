"""Pyramid sparse attention: near-equal keys are seen as one, the more of them together the less they matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits, masked_softmax, repeat_heads
from regard.core.reduction import Partial
from regard.kernels import chosen
from regard.kernels import packing as alone
from regard.mechanisms.sparse.routed import OfPrompts
from regard.patterns.choice import Rows
from regard.patterns.curve import along_curve
from regard.routers.base import means
from regard.routers.diagonal import DiagonalLevels
from regard.routers.levels import QUOTAS, By, Levels, chosen_at, most_at


@published(
    "psa",
    family="sparse",
    row=136,
    title="PSA: Pyramid Sparse Attention for Efficient Video Understanding and Generation",
    arxiv="2512.04025",
    year=2025,
    aliases=("pyramid_sparse_attention",),
    fidelity="authors' code",
    claim=Claim(
        text="among smooth video tokens its error is below that of whole blocks of as many products, in 90% of heads",
        cells="levels.smooth_video",
        holds="levels.is_nearer",
    ),
)
class PyramidSparse(OfPrompts):
    """Blocks of queries see the blocks of keys that matter as they are, others as means of runs of keys, or not at all.

        o_i = Σ_r p_ir mean(V_r),   p_i = softmax_r(q_i · mean(K_r) / √d + log |r|)

    r are the runs of l tokens of the blocks of level l: see `regard.routers.levels.Levels` for who is of which. A run's
    weight is shared by its tokens, so that A is linear in v. Untrained.

    With a ``stride`` levels are those of `regard.routers.diagonal.DiagonalLevels`, and it is causal if asked: runs are
    of blocks that are wholly past, the choice reads the later tokens of its own block, and a text that goes on attends
    to all of it. Without, as for pictures and video, it is bidirectional only, and ``curve`` puts the cells of
    ``Layout.grid`` in the order of a curve through space before blocks are cut, and back.

    Args:
        size: queries in a block. block: keys in a block. quotas: by level, up to which share of the blocks. alike: by
            level, the least cosine of keys that are seen together; None for no such limit. seed: of what is sampled.
            by: whether quotas are shares of the ``count`` of blocks or of their ``mass``. stride: of the antidiagonals
            that blocks are judged by (the authors' 16, in blocks of 128); None for sampled tokens. curve: see above.

    Raises:
        ValueError: as of `Levels` and `DiagonalLevels`; blocks of other sizes with a stride; in a call with a curve, a
            grid with padding or packed documents, or a causal one.

    Paper: Li et al., arXiv 2512.04025, after a few denoising steps of dense attention. Causal as in the authors'
    example of a language model of pictures (Qwen2.5-VL).
    """

    traits = Traits(causal=False, cross=False, rows="one", sign="nonnegative", flops="at most")

    def __init__(
        self,
        size: int = 32,
        block: int = 32,
        quotas: Mapping[int, float] = QUOTAS,
        alike: Mapping[int, float] | None = None,
        seed: int = 0,
        by: By = "count",
        stride: int | None = None,
        curve: bool = False,
    ) -> None:
        traits = self.traits
        if stride is None:
            super().__init__(Levels(size, block, quotas, alike, seed, by))
        else:
            if size != block:
                raise wrong("size, block", f"{size}, {block}", "the same, with a stride")
            super().__init__(DiagonalLevels(block, quotas, alike, by, stride))
            traits = replace(traits, causal=True, resumable=False, suffix=False, leaks=True)
        self.traits, self.curve = traits, curve

    @property
    def ranks(self) -> Levels:
        """The router."""
        assert isinstance(self.router, Levels)
        return self.router

    def levels(self, q: Tensor, k: Tensor, causal: bool) -> Tensor:
        """``(b, h, rows, blocks)`` int64 of one regular layout."""
        return self.ranks.levels(q, k, self.rows_of(q.shape[2], k.shape[2], 1, q.device, causal))

    def rows_of(self, n: int, m: int, level: int, device: torch.device, causal: bool) -> Rows:
        """The queries over runs of so many keys, in blocks of as many tokens whatever the level."""
        runs = -(-m // level)
        return Rows.last(n, runs, self.router.block // level, self.router.size, causal and level == 1, device)

    def ordered(self, layout: Layout) -> Tensor | None:
        """The order of cells along the curve, if they are to be put in one."""
        if not self.curve or layout.grid is None:
            return None
        if not layout.regular or layout.causal:
            raise wrong("layout", "a causal, padded or packed grid on a curve", "a whole grid, all of which is seen")
        return along_curve(layout.grid)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        if (order := self.ordered(layout)) is None:
            return super().rows(q, k, layout, rows, **signals)
        order, back = order.to(q.device), order.argsort().to(q.device)
        whole = self.map(q[:, :, order], k[:, :, order], False, slice(0, len(order)))
        return whole[:, :, back[rows]][..., back]

    def map(self, q: Tensor, k: Tensor, causal: bool, rows: slice) -> Tensor:
        levels, keys, parts, masks = self.levels(q, k, causal), repeat_heads(k, q.shape[1]), [], []
        n, m = q.shape[2], k.shape[2]
        for level in self.ranks.quotas:
            count = counts(m, level, k.device)
            at = chosen_at(levels == level, self.rows_of(n, m, level, q.device, causal))
            parts.append(
                q[:, :, rows] @ means(keys, level).mT.to(q.dtype) * q.shape[3] ** -0.5 + count.log().to(q.dtype)
            )
            masks.append(at.spread(rows))
        paid = masked_softmax(torch.cat(parts, 3), torch.cat(masks, 3)).split([x.shape[3] for x in parts], 3)
        shares = zip(self.ranks.quotas, paid, strict=True)
        spread = [
            (part / counts(m, level, k.device).to(q.dtype)).repeat_interleave(level, 3)[..., :m]
            for level, part in shares
        ]
        return torch.stack(spread).sum(0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.run(q, k, v, layout.causal)

        if (order := self.ordered(layout)) is not None:
            return run(*(x[:, :, order.to(x.device)] for x in (q, k, v)))[:, :, order.argsort().to(q.device)]
        return run(q, k, v) if layout.regular else alone.per_sequence(run, q, k, v, layout)

    def run(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """The output over the keys of one document: level by level, merged."""
        levels, total = self.levels(q, k, causal), None
        for level in self.ranks.quotas:
            if not bool((levels == level).any()):
                continue
            part = self.part(q, k, v, levels == level, level, causal)
            total = part if total is None else total.merge(part)
        return v.new_zeros(*q.shape[:3], v.shape[3]) if total is None else total.out

    def part(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, level: int, causal: bool) -> Partial:
        """Attention to the runs of one level."""
        (n, d), m = q.shape[2:], k.shape[2]
        rows = self.rows_of(n, m, level, q.device, causal)
        way = "blocks" if n * rows.m > chosen.WHOLE else None
        if level > 1:  # a coordinate more carries log |r|
            size = (counts(m, level, k.device).log() * d**0.5).to(k.dtype)
            keys, values = (means(x, level).to(x.dtype) for x in (k, v))
            k = torch.cat([keys, size[:, None].expand(*keys.shape[:3], 1)], 3)
            q, v = torch.nn.functional.pad(q, (0, 1), value=1.0), values
        return chosen.attend(q, k, v, chosen_at(mask, rows), d**-0.5, way)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        router, (n, m), cells = self.ranks, (shape.n, shape.keys), 0
        for level in router.quotas:
            runs, most = -(-m // level), most_at(router, level, m)
            cells += chosen.cells(n, runs, router.block // level, router.size, most) if most else 0
        flops = router.flops(n, m, shape.head_dim) + 4 * cells * max(shape.head_dim + 1, shape.values)
        return Cost(shape.batch * shape.heads * flops, shape.io_bytes, shape.cache_bytes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("three levels", cls(8, 4, {1: 0.2, 2: 0.5, 4: 0.9}), heads=4, kv_heads=2),
            Example("where keys are alike", cls(48, 33, {1: 0.1, 3: 0.6, 11: 0.8}, {3: 0.1}), heads=3, kv_heads=3),
            Example("shares of the mass", cls(8, 4, {1: 0.3, 2: 0.5, 4: 0.8}, by="mass", curve=True)),
            Example("by antidiagonals", cls(6, 6, {1: 0.2, 2: 0.5, 3: 0.8}, {3: -0.1}, stride=3), heads=4, kv_heads=2),
            Example("by antidiagonals, of the mass", cls(9, 9, {1: 0.4, 3: 0.8}, by="mass", stride=3)),
        ]


def counts(m: int, level: int, device: torch.device) -> Tensor:
    """``(runs,)``: the keys of each run, the last having fewer where m is no multiple."""
    starts = torch.arange(0, m, level, device=device)
    return (m - starts).clamp(max=level).double()
