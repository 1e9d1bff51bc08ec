"""Block covers as a GPU reads them: lists of blocks in both directions, and each different mask once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.kernels.block_sparse.shapes import Boxes, fewest
from regard.kernels.device import power
from regard.patterns.base import Pattern, Region
from regard.patterns.cover import Cover
from regard.patterns.grid import regions

LINE = 64, 64
"""Queries in a block, keys in a block, on a line."""
TILES = {2: ((8, 8), (8, 8)), 3: ((4, 4, 4), (4, 4, 4))}
HALVES = {2: ((4, 8), (4, 8)), 3: ((2, 4, 4), (2, 4, 4))}
BOXES: Mapping[bool, Sequence[Boxes]] = {
    False: (TILES, {2: TILES[2], 3: ((1, 8, 8), (1, 8, 8))}, {2: ((1, 64), (1, 64)), 3: ((1, 1, 64), (1, 1, 64))}),
    True: (HALVES, {2: HALVES[2], 3: ((1, 4, 8), (1, 4, 8))}, {2: ((1, 32), (1, 32)), 3: ((1, 1, 32), (1, 1, 32))}),
}
"""Those and others, of which the ones are taken that leave fewest entries; by whether they are halves."""
WIDEST = 512
"""Bytes of a token's vector up to which `LINE` and `TILES` are the blocks; wider ones take `HALVES`."""
LOOKED_AT = 512
"""Blocks whose masks are formed at a time."""

Visible = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Lists:
    """Which blocks of keys each block of queries sees, and the other way around; all int32 but the masks.

    Args:
        rows, cols: ``(blocks, size)``, the queries and keys of each block, −1 for none; sizes are powers of two.
        offsets, columns: the listed blocks of keys of head * query blocks + block, as compressed rows. tiles: the mask
            of each listed block, −1 for all visible. masks: ``(different ones, rows, cols)`` uint8. owner_offsets,
            owners, owner_tiles: the same by block of keys. maps: 1 where all share one cover,
            heads, or sequences times heads. here: ``(maps, n)``, the position of each query, behind which it sees no
            key; None where the masks say so.
    """

    rows: Tensor
    cols: Tensor
    offsets: Tensor
    columns: Tensor
    tiles: Tensor
    masks: Tensor
    owner_offsets: Tensor
    owners: Tensor
    owner_tiles: Tensor
    maps: int
    here: Tensor | None = None

    def to(self, device: torch.device) -> Lists:
        """The lists on another device."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: x.to(device) for name, x in found.items() if isinstance(x, Tensor)}
        return replace(self, **moved)


def listed(cover: Cover, queries: Region, keys: Region, visible: Visible, shift: int) -> Lists:
    """A cover as lists; ``visible(queries, keys, head)`` judges pairs of positions of the blocks that are not full."""
    blocks, key_blocks = len(queries.tokens), len(keys.tokens)
    owners = cover.owners
    partial = (~cover.full).nonzero()[:, 0]
    tiles = torch.full((len(owners),), -1, dtype=torch.int64)
    different = torch.zeros(0, queries.tokens.shape[1] * keys.tokens.shape[1], dtype=torch.uint8)
    for some, masks in formed(cover, partial, queries, keys, visible):
        different, place = torch.unique(torch.cat([different, masks]), dim=0, return_inverse=True)
        old = tiles >= 0
        tiles[old] = place[: len(place) - len(some)][tiles[old]]
        tiles[some] = place[len(place) - len(some) :]
    whole = {
        **{"rows": (queries.tokens - shift).masked_fill(~queries.fresh, -1)},
        **{"cols": keys.tokens.masked_fill(~keys.fresh, -1)},
        **both_ways(cover.offsets, cover.columns, tiles, blocks, key_blocks, cover.maps),
    }
    masks = different.view(-1, queries.tokens.shape[1], keys.tokens.shape[1])
    high, wide = (power(size) - size for size in masks.shape[1:])
    whole["rows"], whole["cols"] = pad(whole["rows"], (0, high), value=-1), pad(whole["cols"], (0, wide), value=-1)
    return Lists(
        masks=pad(masks, (0, wide, 0, high)).contiguous(),
        maps=cover.maps,
        **{name: x.int().contiguous() for name, x in whole.items()},
    )


def both_ways(
    offsets: Tensor, columns: Tensor, tiles: Tensor, blocks: int, key_blocks: int, maps: int
) -> dict[str, Tensor]:
    """The lists of blocks of keys, and what they are by block of keys."""
    owners = torch.repeat_interleave(offsets.diff())
    turned = (owners // max(blocks, 1)) * key_blocks + columns
    order, counts = torch.argsort(turned, stable=True), torch.bincount(turned, minlength=maps * key_blocks)
    return {
        **{"offsets": offsets, "columns": columns, "tiles": tiles},
        **{"owner_offsets": torch.cat([counts.new_zeros(1), counts.cumsum(0)])},
        **{"owners": (owners % max(blocks, 1))[order], "owner_tiles": tiles[order]},
    }


def runs(tokens: int, size: int, device: torch.device, half: bool = False) -> Tensor:
    """Consecutive blocks of ``size`` in pieces that fit a tile: ``(blocks · pieces, side)``, −1 behind their ends."""
    side = min(power(size), LINE[0] // (2 if half else 1))
    places = torch.arange(-(-size // side) * side, device=device)
    block = torch.arange(0, tokens, size, device=device)
    found = (block[:, None] + places).masked_fill(places >= size, -1)
    return found.masked_fill(found >= tokens, -1).view(-1, side)


def chosen(cover: Cover, here: Tensor | None = None, half: bool = False) -> Lists:
    """A cover whose blocks are all visible as lists on its own device, but for keys behind ``here (maps, n)``."""
    device, none = cover.columns.device, cover.columns.new_zeros(0)
    rows, cols = runs(cover.n, cover.rows, device, half), runs(cover.m, cover.cols, device, half)
    high, wide = (-(-size // side.shape[1]) for size, side in ((cover.rows, rows), (cover.cols, cols)))
    counts = (cover.offsets.diff() * wide).view(cover.maps, -1).repeat_interleave(high, 1).flatten()
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    first = (cover.offsets[:-1] * wide).view(cover.maps, -1).repeat_interleave(high, 1).flatten()
    place = torch.arange(int(offsets[-1]), device=device) + (first - offsets[:-1]).repeat_interleave(counts)
    columns = (cover.columns[:, None] * wide + torch.arange(wide, device=device)).flatten()[place]
    tiles = torch.full_like(columns, -1)
    found = both_ways(offsets, columns, tiles, len(rows), len(cols), cover.maps)
    found |= {"rows": rows, "cols": cols, "masks": none} | ({} if here is None else {"here": here})
    return Lists(**{name: x.int().contiguous() for name, x in found.items()}, maps=cover.maps)


def formed(
    cover: Cover, partial: Tensor, queries: Region, keys: Region, visible: Visible
) -> Iterator[tuple[Tensor, Tensor]]:
    """``(some of the partial blocks, their masks (some, rows · cols) uint8)``, map by map."""
    owners, blocks = cover.owners, len(queries.tokens)
    for which in range(cover.maps):
        mine = partial[owners[partial] // max(blocks, 1) == which]
        for some in mine.split(LOOKED_AT):
            i = queries.tokens[owners[some] % blocks][:, :, None]
            j = keys.tokens[cover.columns[some]][:, None, :]
            seen = visible(i, j, which % cover.heads).expand(len(some), i.shape[1], j.shape[2])
            yield some, seen.flatten(1).to(torch.uint8)


def heavy(*tensors: Tensor) -> bool:
    """Whether tokens are so wide that tiles of them do not fit into a GPU's shared memory four at a time."""
    return max(power(x.shape[3]) * x.element_size() for x in tensors) > WIDEST


@lru_cache(maxsize=16)
def planned(pattern: Pattern, n: int, m: int, device: torch.device, half: bool = False) -> Lists:
    """The lists of a pattern, kept for the next call; of blocks of half the side if so told."""
    side = LINE[0] // (2 if half else 1)
    line = side if n > 16 else 16, side
    queries, keys = regions(pattern, n, m, line, fewest(pattern, n, m, line, BOXES[half]))
    cover = pattern.cover_of(queries, keys, n, m)
    heads = [pattern.head(h) for h in range(pattern.heads)]
    return listed(cover, queries, keys, lambda i, j, head: heads[head].visible(i, j, m), m - n).to(device)
