"""Queries that each choose blocks of keys, on a GPU: one row for each pair of a query and a block of its choice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.reduction import Partial
from regard.kernels.block_sparse import lists
from regard.patterns.choice import Choice

SIDE = lists.LINE[0]


@dataclass(frozen=True)
class Pairs:
    """The pairs of each head sorted by block of keys, those of a block filled up to whole tiles of rows.

    Args:
        query: ``(b, h, rows)``, the query of each row, −1 for those that fill up. block: ``(b · h, rows / SIDE)``, the
            block of keys of each tile, −1 for none. row: ``(b, h, n, budget)``, where each pair stands, −1 for those
            that see nothing.
    """

    query: Tensor
    block: Tensor
    row: Tensor

    @classmethod
    def of(cls, choice: Choice) -> Pairs:
        """Those of a choice of single queries, sorted on their device; as many rows as it may need at most."""
        places, (batch, heads, n, budget) = choice.rows, choice.index.shape
        seen = choice.index >= 0
        if places.causal:
            seen = seen & (choice.index * places.block <= places.here[:, None, :, None])
        blocks, maps = places.blocks, batch * heads
        block = choice.index.masked_fill(~seen, blocks).view(maps, n * budget)  # those that see nothing go last
        sorted_block, order = block.sort(dim=1, stable=True)
        counts = block.new_zeros(maps, blocks + 1).scatter_add_(1, block, torch.ones_like(block))
        tiles = -(-counts[:, :-1] // SIDE)
        begins, filled = (F.pad(x.cumsum(1), (1, 0)) for x in (counts[:, :-1], tiles * SIDE))
        total = (n * budget // SIDE + min(blocks, n * budget)) * SIDE
        place = torch.arange(n * budget, device=block.device) - begins.gather(1, sorted_block)
        place = filled.gather(1, sorted_block) + place
        place = place.masked_fill(sorted_block == blocks, total)  # a row to throw away
        query = block.new_full((maps, total + 1), -1).scatter_(1, place, order // budget)[:, :-1]
        row = torch.empty_like(place).scatter_(1, order, place.masked_fill(place == total, -1))
        ends = (filled[:, 1:] // SIDE).contiguous()
        tile = torch.arange(total // SIDE, device=block.device).expand(maps, -1).contiguous()
        of_tile = torch.searchsorted(ends, tile, right=True)
        of_tile = of_tile.masked_fill(of_tile == blocks, -1)
        return cls(query.view(batch, heads, -1), of_tile, row.view(batch, heads, n, budget))

    def listed(self, choice: Choice, half: bool) -> lists.Lists:
        """The block of keys of each tile of rows, in pieces that fit one."""
        places, device = choice.rows, self.block.device
        cols = lists.runs(places.m, places.block, device, half)
        wide = len(cols) // max(places.blocks, 1)
        maps, tiles = self.block.shape
        counts = (self.block.flatten() >= 0) * wide
        offsets = F.pad(counts.cumsum(0), (1, 0))
        columns = (self.block[self.block >= 0][:, None] * wide + torch.arange(wide, device=device)).flatten()
        found = lists.both_ways(offsets, columns, torch.full_like(columns, -1), tiles, len(cols), maps)
        found |= {"rows": torch.arange(tiles * SIDE, device=device).view(-1, SIDE), "cols": cols}
        found |= {"masks": columns.new_zeros(0)}
        if places.causal:
            here = places.here.expand(len(self.query), -1)[:, None].expand(-1, self.query.shape[1], -1)
            found["here"] = here.gather(2, self.query.clamp(min=0)).flatten(0, 1)
        return lists.Lists(**{name: x.int().contiguous() for name, x in found.items()}, maps=maps)


def attend(q: Tensor, k: Tensor, v: Tensor, choice: Choice, scale: float | None = None) -> Partial:
    """Softmax attention of single queries to the blocks that each chose: each pair is a row, and a query's rows merge.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> `Partial` of ``(b, h, n, e)``; differentiable.
    Cost: ``4 n budget block max(d, e)`` FLOPs a head, and up to a tile of rows more for each block of keys; memory
    O(n budget (d + e)). A tile's keys are read once for its 64 queries.
    """
    from regard.kernels.block_sparse.triton import over

    pairs = Pairs.of(choice)
    rows = q.gather(2, pairs.query.clamp(min=0)[..., None].expand(*pairs.query.shape, q.shape[3]))
    part = over(rows, k, v, pairs.listed(choice, lists.heavy(q, v)), q.shape[3] ** -0.5 if scale is None else scale)
    (batch, heads, n, budget), e = pairs.row.shape, v.shape[3]
    place = pairs.row.clamp(min=0).flatten(2)
    out = part.out.gather(2, place[..., None].expand(*place.shape, e)).view(batch, heads, n, budget, e)
    lse = part.lse.gather(2, place).view(pairs.row.shape).masked_fill(pairs.row < 0, -torch.inf)
    blind = (lse == -torch.inf).all(-1)
    total = lse.masked_fill(blind[..., None], 0).logsumexp(-1)
    shares = (lse - total[..., None]).exp().masked_fill(blind[..., None], 0)
    merged = torch.einsum("bhnt,bhnte->bhne", shares, out.to(lse.dtype)).to(q.dtype)
    return Partial(merged, total.masked_fill(blind, -torch.inf))
