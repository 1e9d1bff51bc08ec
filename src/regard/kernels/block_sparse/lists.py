"""Block covers as a GPU reads them: lists of blocks in both directions, and each different mask once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.kernels.device import power
from regard.patterns.base import Pattern, Region
from regard.patterns.cover import Cover
from regard.patterns.grid import regions

LINE = 64, 64
"""Queries in a block, keys in a block, on a line."""
TILES = {2: ((8, 8), (8, 8)), 3: ((4, 4, 4), (4, 4, 4))}
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
            heads, or sequences times heads.
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

    def to(self, device: torch.device) -> Lists:
        """The lists on another device."""
        tensors = {field.name: getattr(self, field.name).to(device) for field in fields(self) if field.name != "maps"}
        return Lists(**tensors, maps=self.maps)


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
    order = torch.argsort((owners // max(blocks, 1)) * key_blocks + cover.columns, stable=True)
    columns = (owners // max(blocks, 1)) * key_blocks + cover.columns
    counts = torch.bincount(columns, minlength=cover.maps * key_blocks)
    whole = {
        **{"rows": (queries.tokens - shift).masked_fill(~queries.fresh, -1)},
        **{"cols": keys.tokens.masked_fill(~keys.fresh, -1)},
        **{"offsets": cover.offsets, "columns": cover.columns, "tiles": tiles},
        **{"owner_offsets": torch.cat([counts.new_zeros(1), counts.cumsum(0)])},
        **{"owners": (owners % max(blocks, 1))[order], "owner_tiles": tiles[order]},
    }
    masks = different.view(-1, queries.tokens.shape[1], keys.tokens.shape[1])
    high, wide = (power(size) - size for size in masks.shape[1:])
    whole["rows"], whole["cols"] = pad(whole["rows"], (0, high), value=-1), pad(whole["cols"], (0, wide), value=-1)
    return Lists(
        masks=pad(masks, (0, wide, 0, high)).contiguous(),
        maps=cover.maps,
        **{name: x.int().contiguous() for name, x in whole.items()},
    )


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


@lru_cache(maxsize=8)
def planned(pattern: Pattern, n: int, m: int, device: torch.device) -> Lists:
    """The lists of a pattern, kept for the next call."""
    queries, keys = regions(pattern, n, m, LINE if n > 16 else (16, LINE[1]), TILES)
    cover = pattern.cover_of(queries, keys, n, m)
    heads = [pattern.head(h) for h in range(pattern.heads)]
    return listed(cover, queries, keys, lambda i, j, head: heads[head].visible(i, j, m), m - n).to(device)
