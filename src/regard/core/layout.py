"""Where the tokens sit and who may see whom."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.core.errors import wrong


@dataclass(frozen=True)
class Layout:
    """The visibility of keys to queries, apart from any mechanism.

    Query ``i`` of ``n`` may see key ``j`` of ``m`` if all of these hold:

    * ``causal``: ``j <= i + (m - n)``: the two sequences are aligned at their END, as decoding needs;
    * ``keys[b, j]``: the key is a token, not padding;
    * ``segments[b, i + (m - n)] == segments[b, j]``: both belong to the same packed document.

    A token's *position* counts the real tokens before it in its sequence, or in its packed document, so padding on
    any side, or in the middle of a cache, shifts nothing. Padding must hold finite numbers; which ones is no matter.

    Args:
        causal: queries see no later keys.
        keys: ``(batch, m)`` bool, False = padding. None: no padding.
        segments: ``(batch, m)`` int, ids of packed documents, each one run of tokens. None: one. Needs ``n <= m``.
        grid: the sizes of a 1-, 2- or 3-D grid whose flattened cells the ``m`` tokens are.
    """

    causal: bool = False
    keys: Tensor | None = None
    segments: Tensor | None = None
    grid: tuple[int, ...] | None = None

    @property
    def plain(self) -> bool:
        """Whether every key is a token of one document, so that only ``causal`` restricts."""
        return self.keys is None and self.segments is None

    def check(self, q: Tensor, k: Tensor) -> None:
        """Raises a ValueError or TypeError that names the field that does not fit ``q`` and ``k``."""
        batch, n, m = q.shape[0], q.shape[2], k.shape[2]
        for name, dtypes in (("keys", (torch.bool,)), ("segments", (torch.int32, torch.int64))):
            given = getattr(self, name)
            if given is None:
                continue
            if given.dtype not in dtypes:
                raise wrong(f"layout.{name}", f"dtype {given.dtype}", " or ".join(map(str, dtypes)), TypeError)
            if tuple(given.shape) != (batch, m):
                raise wrong(f"layout.{name}", f"shape {tuple(given.shape)}", f"(batch, m) = {(batch, m)}")
            if given.device != k.device:
                raise wrong(f"layout.{name}", f"device {given.device}", f"the device of k, {k.device}")
        if self.segments is not None and n > m:
            raise wrong("layout.segments", f"{n} queries over {m} keys", "no more queries than keys")
        if self.grid is not None:
            cells = 1
            for size in self.grid:
                cells *= size
            if not 1 <= len(self.grid) <= 3 or cells != m:
                raise wrong("layout.grid", f"{self.grid}", f"1 to 3 sizes whose product is the {m} keys")

    def positions(self, m: int, device: torch.device | str = "cpu") -> Tensor:
        """``(batch or 1, m)`` int64: how many real tokens of its sequence or document stand before each key."""
        real = torch.ones(1, m, dtype=torch.int64, device=device) if self.keys is None else self.keys.long()
        count = real.cumsum(1)
        if self.segments is not None and m:
            opens = torch.nn.functional.pad(self.segments[:, 1:] != self.segments[:, :-1], (1, 0), value=True)
            count = count - torch.where(opens, count - real, 0).cummax(1).values
        return (count - 1).clamp(min=0)

    def counts(self, n: int, m: int, device: torch.device | str = "cpu") -> Tensor:
        """``(batch or 1, n)`` int64: how many keys each query may see; those of padding queries are unspecified."""
        if self.causal:
            return (self.query_positions(n, m, device) + 1).clamp(min=0)
        real = torch.ones(1, m, dtype=torch.int64, device=device) if self.keys is None else self.keys.long()
        if self.segments is None:
            return real.sum(1, keepdim=True).expand(-1, n)
        runs = torch.nn.functional.pad((self.segments[:, 1:] != self.segments[:, :-1]).cumsum(1), (1, 0))
        sizes = torch.zeros_like(runs).scatter_add_(1, runs, real.expand_as(runs))
        return sizes.gather(1, runs)[:, m - n :]

    def query_positions(self, n: int, m: int, device: torch.device | str = "cpu") -> Tensor:
        """``(batch or 1, n)`` int64: positions of the queries, the last ``n`` tokens; negative before the first key."""
        positions = self.positions(m, device)
        if n <= m:
            return positions[:, m - n :]
        before = torch.arange(m - n, 0, device=device).expand(positions.shape[0], -1)
        return torch.cat([before, positions], dim=1)

    def allowed(self, n: int, m: int, device: torch.device | str = "cpu", rows: slice | None = None) -> Tensor:
        """``(batch or 1, 1, n, m)`` bool: the dense form of all of it, or of its ``rows``; True = may be seen."""
        start, stop, _ = (rows or slice(0, n)).indices(n)
        queries = torch.arange(start, stop, device=device)[:, None] + (m - n)
        columns = torch.arange(m, device=device)[None, :]
        everywhere = torch.ones(stop - start, m, dtype=torch.bool, device=device)
        allowed = (columns <= queries if self.causal else everywhere)[None]
        if self.keys is not None:
            allowed = allowed & self.keys[:, None, :]
        if self.segments is not None:
            own = self.segments[:, m - n + start : m - n + stop, None]
            allowed = allowed & (own == self.segments[:, None, :])
        return allowed[:, None]

    def slice(self, n: int, m: int, rows: slice) -> tuple[Layout, int]:
        """The layout of the queries ``rows`` alone, with the number of leading keys that it is about.

        The end of ``rows`` stays aligned with the end of the keys kept, so a causal layout drops the keys that
        none of the rows can see.
        """
        stop = min(max(rows.stop + (m - n), 0), m) if (self.causal or self.segments is not None) else m
        if not self.causal and self.segments is not None:
            raise wrong("layout.segments", "rows of a two-sided packed layout", "whole layouts when not causal")
        cut = replace(
            self,
            keys=None if self.keys is None else self.keys[:, :stop],
            segments=None if self.segments is None else self.segments[:, :stop],
            grid=None,
        )
        return cut, stop
