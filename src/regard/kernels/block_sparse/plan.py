"""Attention to listed blocks of keys: a pattern's, or those that a router has chosen for each head and query block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, reduce
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.mechanism import accumulate_dtype, masked_softmax, repeat_heads
from regard.core.reduction import Partial
from regard.kernels import dense
from regard.kernels import device as gpu
from regard.kernels import masked_rows as whole
from regard.kernels.block_sparse import lists
from regard.kernels.block_sparse.shapes import Boxes, counted, fewest
from regard.kernels.rows import flat_index, taken
from regard.patterns.base import Pattern, Region
from regard.patterns.cover import Cover
from regard.patterns.grid import regions
from regard.patterns.parted import parted

LINE = 128, 32
"""Queries in a block, keys in a block, on a line."""
TILES = {2: ((8, 8), (2, 2)), 3: ((4, 4, 4), (2, 2, 2))}
"""The same on a grid of several axes, by their number."""
RUNS = {2: ((1, 64), (1, 4)), 3: ((1, 1, 64), (1, 1, 8))}
FRAMES = {2: TILES[2], 3: ((1, 8, 8), (1, 2, 4))}
"""Other boxes, for patterns that leave more of them out: cells of one row, or of one frame."""
GATHERED = 1 << 12
"""Keys that are gathered at a time, of one head; more do not stay in the processor's cache."""
KEPT = 1 << 22
"""Entries of a plan up to which its masks are kept as biases too."""
WHOLE = 1 << 16
"""Pairs up to which one call under a dense mask is faster than blocks."""
FEW = 512
"""Tokens up to which nobody asks how much blocks leave out, where rows are not faster anyway."""
GATHERING = 0.62
"""Time of an entry in rows of a mask over that of one in gathered blocks."""
SAMPLED = 1 << 22
"""Pairs of blocks above which `cells` looks at a sample of the blocks of queries."""


Bias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Gathered:
    """A piece, as `dense.over` takes it: blocks of queries, each over keys of its own.

    Args:
        rows: the blocks' queries, in order. size: queries in a block. index: ``(maps, blocks, width)`` int64, the keys
            of each block, maps being 1, heads, or batch times heads. mask: ``(maps, blocks, size, width)`` bool; None
            if all are visible. keeps: whether the mask is kept as a bias.
    """

    rows: slice
    size: int
    index: Tensor
    mask: Tensor | None
    keeps: bool = False
    causal: bool = field(default=False, init=False)
    alone: ClassVar[bool] = True
    batch: ClassVar[slice] = slice(None)

    def queries(self, x: Tensor) -> Tensor:
        """``(b, h, n, …)`` -> ``(b h, blocks, size, …)``."""
        return x[:, :, self.rows].unflatten(2, (-1, self.size)).flatten(0, 1)

    def keys(self, x: Tensor) -> Tensor:
        """``(b, h, m, d)`` -> ``(b h, blocks, width, d)``, copied."""
        return taken(x, self.index.flatten(1)).view(-1, *self.index.shape[1:], x.shape[3])

    def restore(self, x: Tensor, heads: int) -> Tensor:
        """``queries`` undone."""
        return x.flatten(1, 2).unflatten(0, (-1, heads))

    def add_keys(self, total: Tensor, part: Tensor) -> None:
        """Adds a gradient shaped like ``keys`` to ``total (b, h, m, d)``."""
        flat = part.reshape(-1, part.shape[-1]).to(total.dtype)
        total.view(-1, total.shape[3]).index_add_(0, flat_index(total, self.index.flatten(1)), flat)

    def repeated(self, batch: int, heads: int) -> Gathered:
        """The piece for a batch: masks of several heads stand once for each sequence."""
        if self.mask is None or self.mask.shape[0] in (1, batch * heads):
            return self
        return Gathered(self.rows, self.size, self.index, self.mask.repeat(batch, 1, 1, 1))

    def before(self, m: int) -> Gathered:
        """The piece without keys from ``m`` on."""
        if self.last < m:
            return self
        shown = (self.index < m)[:, :, None]
        mask = shown.expand(-1, -1, self.size, -1) if self.mask is None else self.mask & shown
        return Gathered(self.rows, self.size, self.index, mask)

    @cached_property
    def last(self) -> int:
        """The last key of any block."""
        return int(self.index.max()) if self.index.numel() else -1

    def within(self, given: Tensor, order: Tensor, batch: int, heads: int) -> Gathered:
        """The piece for a batch under a mask ``(batch or 1, heads or 1, n, m)``; ``order`` is the plan's."""
        rows = order[self.rows].view(1, -1, self.size, 1)
        head = torch.arange(given.shape[1], device=given.device).view(-1, 1, 1, 1)
        found = given[:, head, rows, self.index[:, :, None, :]]
        found = found if self.mask is None else found & self.mask
        if found.shape[:2] != (1, 1):
            found = found.expand(batch, heads, *found.shape[2:])
        return Gathered(self.rows, self.size, self.index, found.flatten(0, 1))

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """The mask as the operator adds it to the scores."""
        if not self.keeps:
            return dense.additive(self.mask, dtype)
        if dtype not in self.biases:
            self.biases[dtype] = dense.additive(self.mask, dtype)
        return self.biases[dtype]

    @cached_property
    def biases(self) -> dict[torch.dtype, Tensor | None]:
        """Those that are kept."""
        return {}

    def sighted(self) -> Tensor | None:
        """Which rows see any key; None if all do."""
        return self.seeing

    @cached_property
    def seeing(self) -> Tensor | None:
        if self.mask is None:
            return None
        found = self.mask.any(-1)
        return None if bool(found.all()) else found


@dataclass(frozen=True)
class BlockPlan:
    """How a pattern is computed for one length.

    Args:
        order: ``(padded,)`` int64, which query stands where, block by block; a short block repeats some.
        back: ``(n,)`` int64, where each query's output is. pieces: over the ordered queries. cells: entries of A that
            are computed, of one head.
    """

    order: Tensor
    back: Tensor
    pieces: Sequence[Gathered]
    cells: int

    def to(self, device: torch.device) -> BlockPlan:
        """The plan on another device."""
        if self.order.device == device:
            return self
        pieces = [
            Gathered(p.rows, p.size, p.index.to(device), None if p.mask is None else p.mask.to(device))
            for p in self.pieces
        ]
        return BlockPlan(self.order.to(device), self.back.to(device), pieces, self.cells)

    def within(self, m: int) -> BlockPlan:
        """The plan for the first ``m`` of its tokens: what stands behind them is hidden."""
        return replace(self, pieces=[piece.before(m) for piece in self.pieces])

    def pieces_for(self, batch: int, heads: int, mask: Tensor | None) -> list[Gathered]:
        """The pieces for so many sequences and heads, cut by a mask ``(batch or 1, heads or 1, n, m)``."""
        if mask is None:
            return [piece.repeated(batch, heads) for piece in self.pieces]
        return [piece.within(mask, self.order, batch, heads) for piece in self.pieces]


def attend(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Softmax attention to the keys that ``pattern`` shows and ``mask`` does not hide.

        o_i = Σ_{j ∈ P(i)} p_ij v_j,   p_i = softmax over P(i) of scale q_i · k_j

    Query i of n stands at position ``i + m − n``; queries before the first key, or that see none, get zeros.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h;
    ``mask (b or 1, h or 1, n, m)`` bool, True = may be seen. A masked call runs in PyTorch's operators on every device.
    Cost: ``4 cells max(d, e)`` FLOPs a head with `cells`; memory O(n + m) and a few blocks' keys.

    Raises:
        ValueError: the pattern is for another length or number of heads.
    """
    return attend_lse(q, k, v, pattern, scale, mask).out


def attend_lse(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scale: float | None = None, mask: Tensor | None = None
) -> Partial:
    """``attend`` with the log-sum-exp of each row; both are differentiable."""
    n, m, blind = fitting(pattern, q, k)
    if mask is None and gpu.usable(q):
        return run_on_gpu(q, k, v, lists.planned(pattern, n, m, q.device, lists.heavy(q, v)), blind, scale)
    mask = mask if mask is None else mask[:, :, blind:]
    if n and in_rows(pattern, m, q.device):
        return dense.over(q, k, v, whole.pieces(pattern, n, m, blind, mask), scale)
    if 0 < n * m <= WHOLE:
        shown = dense_mask(pattern, n, m).to(q.device)
        shown = shown if mask is None else shown & mask
        return dense.over(q, k, v, [dense.Piece(slice(blind, q.shape[2]), slice(0, m), mask=shown)], scale)
    more = roomy(pattern, n, m) - m
    if more:
        q, k, v = (torch.nn.functional.pad(x, (0, 0, 0, more)) for x in (q, k, v))
        mask = mask if mask is None else torch.nn.functional.pad(mask, (0, more, 0, more))
    plans = [planned(part, n + more, m + more) for part in parted(pattern)]
    plans = [(plan.within(m) if more else plan).to(q.device) for plan in plans]
    part = reduce(Partial.merge, (run(q, k, v, plan, blind, scale, mask) for plan in plans))
    return Partial(part.out[:, :, : blind + n], part.lse[:, :, : blind + n]) if more else part


def in_rows(pattern: Pattern, m: int, device: torch.device) -> bool:
    """Whether rows of a kept mask are faster than blocks: of few tokens, or of more where blocks leave out little."""
    if whole.fits(pattern, m, device):
        return True
    return FEW < m <= whole.WIDE and whole.kept(pattern, m, device) and nearly_dense(pattern, whole.side_of(m))


@lru_cache(maxsize=64)
def nearly_dense(pattern: Pattern, side: int) -> bool:
    """Whether blocks of the first ``side`` tokens hold so much of what rows do that gathering them costs more."""
    blocks = sum(listed_cells(part, side, side) for part in parted(pattern))
    return blocks > GATHERING * spanned(pattern.cover(side, side, *LINE))


def spanned(cover: Cover) -> int:
    """Entries of whole rows of blocks of the mean head, each from the first listed key to the last of any head."""
    if not cover.blocks:
        return 0
    row, most = cover.owners % cover.query_blocks, cover.columns.max() + 1
    first = torch.full((cover.query_blocks,), int(most)).scatter_reduce_(0, row, cover.columns, "amin")
    last = torch.zeros(cover.query_blocks, dtype=torch.int64).scatter_reduce_(0, row, cover.columns + 1, "amax")
    return int((last - first).clamp(min=0).sum()) * cover.rows * cover.cols


def roomy(pattern: Pattern, n: int, m: int) -> int:
    """The length whose plan serves ``m`` tokens: one of eight in an octave, so that new lengths find a plan."""
    if n != m or not pattern.endless:
        return m
    step = max(1 << m.bit_length() >> 4, 1)
    return -(-m // step) * step


@lru_cache(maxsize=8)
def dense_mask(pattern: Pattern, n: int, m: int) -> Tensor:
    """``(1, heads or 1, n, m)`` bool, kept for the next call."""
    return pattern.dense(n, m)[None]


def fitting(pattern: Pattern, q: Tensor, k: Tensor) -> tuple[int, int, int]:
    """Queries that stand at a key or behind it, keys, and how many queries stand before the first key."""
    n, m, heads = q.shape[2], k.shape[2], q.shape[1]
    if pattern.heads not in (1, heads):
        raise wrong("pattern", f"{pattern.heads} heads", f"1, or the {heads} of q")
    if pattern.crossed and n > m:
        wanted = "at most as many queries: kernels align the last of both; softmax under Layout(mask=…) takes the rest"
        raise wrong("q", f"{n} queries over {m} keys", wanted)
    return min(n, m), m, max(n - m, 0)


def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, cover: Cover, causal: bool = False, scale: float | None = None
) -> Partial:
    """The same over all entries of the blocks that ``cover`` lists, cut at the query if ``causal``: for routers.

    Raises:
        ValueError: the cover is of other sizes, another batch or another number of heads.
    """
    batch, heads, n, m = *q.shape[:3], k.shape[2]
    if (cover.n, cover.m) != (n, m) or cover.heads not in (1, heads) or cover.batch not in (1, batch):
        came = f"{cover.n} × {cover.m}, {cover.heads} heads, batch {cover.batch}"
        raise wrong("cover", came, f"{n} × {m}, 1 or {heads} heads, batch 1 or {batch}")
    cover = cover if cover.batch == 1 else cover.repeated(heads)
    if gpu.usable(q):
        here = torch.arange(m - n, m, device=q.device).expand(cover.maps, n) if causal else None
        return run_on_gpu(q, k, v, lists.chosen(cover.to(q.device), here, lists.heavy(q, v)), 0, scale)
    cover = cover.to(torch.device("cpu"))
    queries, keys = Region.runs(torch.arange(m - n, m), cover.rows), Region.runs(torch.arange(m), cover.cols)

    def visible(i: Tensor, j: Tensor, head: int) -> Tensor:
        return (j <= i) if causal else torch.ones(torch.broadcast_shapes(i.shape, j.shape), dtype=torch.bool)

    plan = assembled(cover, queries, keys, visible, m - n)
    return run(q, k, v, plan.to(q.device), 0, scale)


def attend_unfused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    scale: float | None = None,
    bias: Bias | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """`attend` by batched matrix products that form the weights of all blocks: memory O(cells), any bias.

    ``bias(queries, keys)`` gives what is added to the scores of pairs of positions ``(blocks, size, 1)`` and
    ``(blocks, 1, width)``, as ``(heads or 1, blocks, size, width)``; gradients flow into it.

    Raises:
        ValueError: the pattern is for another length or number of heads, or differs between heads under a bias.
    """
    if bias is not None and pattern.heads > 1:
        raise wrong(
            "pattern", f"{pattern.heads} heads with a bias", "one pattern for all heads: a bias reads positions"
        )
    (n, m, blind), heads = fitting(pattern, q, k), q.shape[1]
    plan = planned(pattern, n, m).to(q.device)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    dtype, wide = q.dtype, accumulate_dtype(q.dtype)
    q, k, v = q.to(wide), repeat_heads(k, heads).to(wide), repeat_heads(v, heads).to(wide)
    ordered, places, parts = taken(q[:, :, blind:], plan.order[None]), plan.order + (m - n), []
    mask = mask if mask is None else mask[:, :, blind:]
    for piece in plan.pieces_for(q.shape[0], heads, mask):
        scores = (piece.queries(ordered) * factor) @ piece.keys(k).mT
        if bias is not None:
            rows = places[piece.rows].view(-1, piece.size, 1)
            added = bias(rows, piece.index[0][:, None, :])
            scores = (scores.unflatten(0, (-1, heads)) + added).flatten(0, 1)
        weights = torch.softmax(scores, dim=-1) if piece.mask is None else masked_softmax(scores, piece.mask)
        parts.append(piece.restore(weights @ piece.keys(v), heads))
    rest = len(plan.order) - sum(part.shape[2] for part in parts)
    blank = sum(x[..., :0].sum() for x in (q, k, v))  # zero, and differentiable
    out = torch.cat([*parts, v.new_zeros(q.shape[0], heads, rest, v.shape[3]) + blank], dim=2)
    return torch.nn.functional.pad(taken(out, plan.back[None]), (0, 0, blind, 0)).to(dtype)


def run(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, blind: int, scale: float | None, mask: Tensor | None = None
) -> Partial:
    """Queries put in the plan's order, attended, and put back."""
    k, v = repeat_heads(k, q.shape[1]).contiguous(), repeat_heads(v, q.shape[1]).contiguous()
    ordered = taken(q[:, :, blind:], plan.order[None])
    part = dense.over(ordered, k, v, plan.pieces_for(q.shape[0], q.shape[1], mask), scale)  # pyright: ignore
    return behind(Partial(taken(part.out, plan.back[None]), taken(part.lse, plan.back[None])), blind)


def run_on_gpu(q: Tensor, k: Tensor, v: Tensor, blocks: lists.Lists, blind: int, scale: float | None) -> Partial:
    """The same in Triton, the queries where they are."""
    from regard.kernels.block_sparse.triton import over

    return behind(over(q[:, :, blind:], k, v, blocks, scale), blind)


def behind(part: Partial, blind: int) -> Partial:
    """The rows behind as many that see nothing."""
    if not blind:
        return part
    pad = torch.nn.functional.pad
    return Partial(pad(part.out, (0, 0, blind, 0)), pad(part.lse, (blind, 0), value=-torch.inf))


def cells(pattern: Pattern, n: int, m: int, biased: bool = False) -> int:
    """Entries of A that `attend` computes, or `attend_unfused` for ``biased`` scores, of the mean head.

    Whole rows of small inputs; else whole blocks, up to the next length that has a plan, the lists of blocks of queries
    that run together as long as the longest of them; of long inputs an estimate from evenly spaced blocks of queries.
    """
    n = min(n, m)
    if not n or not m:
        return 0
    if not biased:
        if in_rows(pattern, m, torch.device("cpu")):
            return whole.cells(pattern, n, m)
        if n * m <= WHOLE:
            return n * m
        n, m = (x + roomy(pattern, n, m) - m for x in (n, m))
    return sum(listed_cells(part, n, m) for part in ([pattern] if biased else parted(pattern)))


def listed_cells(pattern: Pattern, n: int, m: int) -> int:
    """The entries of a plan's blocks."""
    found = counted(pattern, n, m, line_of(n), boxes_of(pattern, n, m), SAMPLED)
    listed = sum(len(group) * int(found.counts[:, group].max()) for group in grouped(found.counts, found.cols))
    return round(listed * found.more) * found.rows * found.cols


@lru_cache(maxsize=64)
def boxes_of(pattern: Pattern, n: int, m: int) -> Boxes:
    """The boxes of a plan, if it has any."""
    return fewest(pattern, n, m, line_of(n), (TILES, FRAMES, RUNS))


def line_of(n: int) -> tuple[int, int]:
    """`LINE` for so many queries: a decoding step is a block of one."""
    return min(LINE[0], max(n, 1)), LINE[1]


@lru_cache(maxsize=32)
def planned(pattern: Pattern, n: int, m: int) -> BlockPlan:
    """The plan of a pattern, kept for the next call."""
    queries, keys = regions(pattern, n, m, line_of(n), boxes_of(pattern, n, m), classes=True)
    cover = pattern.cover_of(queries, keys, n, m, exact=False)
    heads = [pattern.head(h) for h in range(pattern.heads)]
    return assembled(cover, queries, keys, lambda i, j, head: heads[head].visible(i, j, m), m - n)


def grouped(counts: Tensor, cols: int) -> list[Tensor]:
    """Blocks of queries that run together: with lists of about the same length, and not too many keys in all."""
    longest = counts.amax(0)
    order = torch.argsort(longest, stable=True)
    groups, start = [], 0
    widths = longest[order].tolist()
    for end in range(1, len(widths) + 1):
        last = end == len(widths)
        if last or widths[end] > 1.25 * widths[start] + 1 or (end - start + 1) * widths[end] * cols > GATHERED:
            if widths[end - 1]:
                groups.append(order[start:end])
            start = end
    return groups


def assembled(cover: Cover, queries: Region, keys: Region, visible, shift: int) -> BlockPlan:
    """A cover as pieces, its blocks of queries sorted by how many keys they see."""
    size, cols = queries.tokens.shape[1], keys.tokens.shape[1]
    blocks, maps = len(queries.tokens), cover.maps
    counts = cover.offsets.diff().view(maps, -1)
    groups, pieces, start, total = grouped(counts, cols), [], 0, 0
    fresh = keys.fresh
    for group in groups:
        width = int(counts[:, group].max())
        place = torch.arange(width)
        real = place < counts[:, group][..., None]
        first = cover.offsets[:-1].view(maps, blocks)[:, group][..., None]
        block = cover.columns[(first + place).clamp(max=len(cover.columns) - 1)]  # (maps, blocks, width)
        index = keys.tokens[block].flatten(2)
        usable = (real[..., None] & fresh[block]).flatten(2)
        rows = queries.tokens[group]
        mask = torch.stack([visible(rows[:, :, None], index[h][:, None, :], h % cover.heads) for h in range(maps)])
        mask = mask.expand(maps, len(group), size, index.shape[2]) & usable[:, :, None, :]
        stop = start + len(group) * size
        pieces.append(Gathered(slice(start, stop), size, index, None if bool(mask.all()) else mask))
        start, total = stop, total + len(group) * size * index.shape[2]
    seen = torch.cat(groups) if groups else torch.zeros(0, dtype=torch.int64)
    rest = torch.ones(blocks, dtype=torch.bool)
    rest[seen] = False
    order = queries.tokens[torch.cat([seen, rest.nonzero()[:, 0]])].flatten() - shift
    count = int(order.max()) + 1 if len(order) else 0
    places = torch.arange(len(order))
    back = torch.full((count,), len(order)).scatter_reduce_(0, order, places, "amin")
    pieces = [replace(piece, keeps=total <= KEPT) for piece in pieces]
    return BlockPlan(order, back, pieces, total)


def share(pattern: Pattern, n: int) -> float:
    """Visible pairs over computed ones: what is left of the pattern's limit."""
    return pattern.pairs(n) / max(cells(pattern, n, n) * pattern.heads, 1)


def limit(pattern: Pattern, n: int, causal: bool) -> float:
    """Visible pairs over those of dense attention: the least share of its time that the pattern could take."""
    return pattern.pairs(n) / (pattern.heads * (n * (n + 1) // 2 if causal else n * n))
