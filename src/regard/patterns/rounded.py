"""The bands of radial attention, rounded to the blocks of a kernel by how dense they are in each."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.patterns.base import Bounds, Region
from regard.patterns.grid import Radial, Sizes

DENSE, MOST = 1 / 3, 0.6
"""A block's column counts as dense above this share of its rows; it is kept above that share of dense columns."""


class RoundedRadial(Radial):
    """`Radial` in whole blocks: a pair is seen if its block is kept.

    Of each pair of frames, a block of ``block`` queries and keys is kept if more than 0.6 of its columns that show
    anything show it to more than a third of the rows. Blocks begin at the first token, wherever frames do, and of each
    pair of frames as many are looked at as a frame fills, so that the end of a frame that begins inside a block may
    be left to the next one. A last block that the tokens do not fill is seen, and sees, whole.

    Args:
        grid: ``(frames, tokens)`` or ``(frames, height, width)``. block: of queries and keys. least: the narrowest
            band, None for a block. factor: of the bands' widths, above 0.

    Source: the code of Li et al. (Radial Attention), arXiv 2506.19852.
    """

    def __init__(self, grid: Sizes, block: int = 128, least: int | None = None, factor: float = 0.5) -> None:
        if block < 1:
            raise wrong("block", str(block), "1 or more")
        super().__init__(grid, block if least is None else least, factor)
        self.block = block
        self.kept = self.rounded()
        self.sums = torch.nn.functional.pad(
            self.kept.cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32), (1, 0, 1, 0)
        )

    def __repr__(self) -> str:
        return f"RoundedRadial({self.sizes}, {self.block}, {self.least}, {self.factor})"

    def rounded(self) -> Tensor:
        """``(blocks, blocks)`` bool: which are kept."""
        frames, size, block = self.sizes[0], self.tokens, self.block
        full, count = frames * size // block, -(-size // block)
        kept = torch.zeros(-(-frames * size // block) + 1, -(-frames * size // block) + 1, dtype=torch.bool)
        starts = torch.arange(frames) * size
        first, inside = starts // block, starts % block
        width = self.width[(starts[:, None] - starts).abs() // size].clamp(max=size)
        width[:, 0] = size
        cases = ((width + 1) * block + inside[:, None]) * block + inside
        found, which = cases.flatten().unique(return_inverse=True)
        for number, case in enumerate(found.tolist()):
            pair = (which == number).nonzero()[:, 0]
            rows, columns = (
                self.of_frames(case // block**2 - 1, case // block % block, case % block, count).nonzero().unbind(1)
            )
            kept[first[pair // frames, None] + rows, first[pair % frames, None] + columns] = True
        kept[full:], kept[:, full:] = True, True
        return kept[:-1, :-1]

    def of_frames(self, width: int, above: int, left: int, count: int) -> Tensor:
        """``(count, count)`` bool of two frames that begin so many tokens into their first blocks."""
        place = torch.arange(self.tokens)
        near = (place[:, None] - place).abs() <= width
        side, size = count * self.block, self.tokens
        room = torch.zeros(side, side, dtype=torch.bool)
        room[above : above + size, left : left + size] = near[: side - above, : side - left]
        columns = room.view(count, self.block, count, self.block).sum(1) / self.block
        share = (columns > DENSE).sum(-1) / ((columns > 0).sum(-1) + 1e-9)
        return share > MOST

    def visible(self, i: Tensor, j: Tensor, m: int) -> Tensor:
        return self.kept.to(j.device)[i // self.block, j // self.block]

    def bounds(self, queries: Region, keys: Region, m: int) -> Bounds:
        (top, bottom, rows), (left, right, columns) = (self.blocks(region) for region in (queries, keys))
        found = self.sums[bottom][:, right] - self.sums[top][:, right] - self.sums[bottom][:, left]
        found = found + self.sums[top][:, left]
        area = (bottom - top)[:, None] * (right - left)
        device = keys.tokens.device
        some, every = (each[rows][:, columns].to(device) for each in (found > 0, found == area))
        return Bounds.exactly(some, every) if queries.run and keys.run else Bounds.at_most(some, every)

    def blocks(self, region: Region) -> tuple[Tensor, Tensor, Tensor]:
        """The ranges of blocks that parts of a region are in, from and to, and the range of each part."""
        ranges = torch.stack([region.low // self.block, region.high // self.block + 1]).cpu()
        found, which = ranges.unique(dim=1, return_inverse=True)
        return found[0], found[1], which
