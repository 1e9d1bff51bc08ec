"""Block covers: which blocks of queries and keys hold visible entries, as compressed rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.core.errors import wrong


@dataclass(frozen=True)
class Cover:
    """The blocks of ``n × m`` masks that are not empty, by block of queries: of one for all, or by sequence and head.

    Args:
        n, m: queries and keys. rows, cols: of a block, the last ones being shorter.
        offsets: ``(batch * heads * query_blocks + 1)`` int64. columns: ``(nnz)`` int64, ascending key blocks of a row.
        full: ``(nnz)`` bool, whether every entry of the block is visible. heads, batch: 1 where all share one cover.

    Raises:
        ValueError: a block side below one, or offsets that do not fit.
    """

    n: int
    m: int
    rows: int
    cols: int
    offsets: Tensor
    columns: Tensor
    full: Tensor
    heads: int = 1
    batch: int = 1

    def __post_init__(self):
        if min(self.rows, self.cols) < 1:
            raise wrong("rows, cols", f"{self.rows}, {self.cols}", "at least 1 each")
        if len(self.offsets) != self.maps * self.query_blocks + 1:
            raise wrong("offsets", f"{len(self.offsets)} entries", f"{self.maps * self.query_blocks + 1}")

    @classmethod
    def from_index(cls, index: Tensor, n: int, m: int, rows: int, cols: int) -> Cover:
        """All-visible blocks from ``index (heads, query_blocks, k)``, or with a batch before them.

        Repeats count once, negatives stand for none.
        """
        batch, heads = (1, *index.shape[:-2])[-2:]
        index = index.reshape(batch * heads, *index.shape[-2:])
        blocks, key_blocks = -(-n // rows), -(-m // cols)
        if index.numel() and int(index.max()) >= key_blocks:
            raise wrong("index", f"key block {int(index.max())}", f"below {key_blocks}")
        row = torch.arange(batch * heads * blocks, device=index.device).view(batch * heads, blocks, 1)
        flat = torch.unique((row * key_blocks + index)[index >= 0])
        counts = torch.bincount(flat // max(key_blocks, 1), minlength=batch * heads * blocks)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        columns = flat % max(key_blocks, 1)
        return cls(n, m, rows, cols, offsets, columns, torch.ones_like(columns, dtype=torch.bool), heads, batch)

    def to(self, device: torch.device) -> Cover:
        """The cover on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("offsets", "columns", "full")})

    @property
    def maps(self) -> int:
        """How many masks it is about: sequences times heads."""
        return self.batch * self.heads

    @property
    def query_blocks(self) -> int:
        return -(-self.n // self.rows)

    @property
    def blocks(self) -> int:
        """How many blocks are listed."""
        return len(self.columns)

    @property
    def owners(self) -> Tensor:
        """``(nnz)``: (sequence * heads + head) * query_blocks + query block of each listed block."""
        return torch.repeat_interleave(self.offsets.diff())

    @property
    def cells(self) -> int:
        """Entries inside the listed blocks, those at the borders by their true size."""
        if not self.blocks:
            return 0
        high = (self.n - self.owners % self.query_blocks * self.rows).clamp(max=self.rows)
        return int((high * (self.m - self.columns * self.cols).clamp(max=self.cols)).sum())

    @property
    def density(self) -> float:
        """``cells`` over all entries."""
        return self.cells / max(self.maps * self.n * self.m, 1)

    def repeated(self, heads: int) -> Cover:
        """The cover with lists of their own for each of so many heads, which share those of their sequence now."""
        if self.heads == heads:
            return self
        if self.heads != 1:
            raise wrong("heads", str(heads), f"the {self.heads} heads of the cover, or of one")
        order = torch.arange(self.maps, device=self.columns.device).repeat_interleave(heads)
        owner = self.owners // max(self.query_blocks, 1)
        chosen = torch.cat([(owner == which).nonzero()[:, 0] for which in order.tolist()])
        counts = self.offsets.diff().view(self.maps, -1)[order].flatten()
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return replace(self, offsets=offsets, columns=self.columns[chosen], full=self.full[chosen], heads=heads)

    def lists(self, head: int, block: int, sequence: int = 0) -> Tensor:
        """Key blocks of one block of queries, ascending."""
        of = (sequence if self.batch > 1 else 0) * self.heads + (head if self.heads > 1 else 0)
        row = of * self.query_blocks + block
        return self.columns[int(self.offsets[row]) : int(self.offsets[row + 1])]
