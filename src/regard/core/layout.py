"""Where the tokens sit and who may see whom."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.core.deprecated import renamed_field
from regard.core.errors import wrong


@renamed_field("keys", "key_mask")
@dataclass(frozen=True)
class Layout:
    """The visibility of keys to queries, apart from any mechanism.

    Query ``i`` of ``n`` may see key ``j`` of ``m`` if all of these hold:

    * ``causal``: ``j <= i + (m - n)``: the two sequences are aligned at their END, as decoding needs;
    * ``key_mask[b, j]``: the key is a token, not padding;
    * ``segments[b, i + (m - n)] == segments[b, j]``: both belong to the same packed document;
    * ``mask[b, h, i, j]``: nothing else hides this key from this query.

    A token's *position* counts the real tokens before it in its sequence, or in its packed document, so padding on
    any side, or in the middle of a cache, shifts nothing. Nor does a mask: a hidden token is still one, with its
    signals. Padding must hold finite numbers; which ones is no matter.

    Args:
        causal: queries see no later keys.
        key_mask: ``(batch, m)`` bool, False = padding. None: no padding.
        segments: ``(batch, m)`` int, ids of packed documents, each one run of tokens. None: one. Needs ``n <= m``.
        grid: the sizes of a 1-, 2- or 3-D grid whose flattened cells the ``m`` tokens are.
        mask: ``(batch or 1, heads or 1, n, m)`` bool for query heads, False = hidden. None: nothing is. For mechanisms
            whose `Traits` are ``masked``, in whole calls: ``extend`` takes none.
        bias: ``(batch or 1, heads or 1, n, m)``, finite numbers that are added to the scores, after any softcap, before
            they become weights; differentiable. For mechanisms whose `Traits` are ``biased``, in whole calls.
    """

    causal: bool = False
    key_mask: Tensor | None = None
    segments: Tensor | None = None
    grid: tuple[int, ...] | None = None
    mask: Tensor | None = None
    bias: Tensor | None = None

    @property
    def regular(self) -> bool:
        """Whether every key is a token of one document, so that positions are places in memory."""
        return self.key_mask is None and self.segments is None

    @property
    def plain(self) -> bool:
        """Whether only ``causal`` restricts, and nothing is added."""
        return self.regular and self.mask is None and self.bias is None

    def check(self, q: Tensor, k: Tensor) -> None:
        """Raises a ValueError or TypeError that names the field that does not fit ``q`` and ``k``."""
        batch, n, m = q.shape[0], q.shape[2], k.shape[2]
        for name, dtypes in (("key_mask", (torch.bool,)), ("segments", (torch.int32, torch.int64))):
            given = getattr(self, name)
            if given is None:
                continue
            if given.dtype not in dtypes:
                raise wrong(f"layout.{name}", f"dtype {given.dtype}", " or ".join(map(str, dtypes)), TypeError)
            if tuple(given.shape) != (batch, m):
                raise wrong(f"layout.{name}", f"shape {tuple(given.shape)}", f"(batch, m) = {(batch, m)}")
            if given.device != k.device:
                raise wrong(f"layout.{name}", f"device {given.device}", f"the device of k, {k.device}")
        if self.mask is not None:
            check_mask(self.mask, q, k)
        if self.bias is not None:
            check_bias(self.bias, q, k)
        if self.segments is not None and n > m:
            raise wrong("layout.segments", f"{n} queries over {m} keys", "no more queries than keys")
        if self.grid is not None:
            cells = 1
            for size in self.grid:
                cells *= size
            if not 1 <= len(self.grid) <= 3 or cells != m:
                raise wrong("layout.grid", f"{self.grid}", f"1 to 3 sizes whose product is the {m} keys")

    @staticmethod
    def opens(segments: Tensor) -> Tensor:
        """``(batch, m)`` bool: whether a packed document begins at each token."""
        return torch.nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)

    def positions(self, m: int, device: torch.device | str = "cpu") -> Tensor:
        """``(batch or 1, m)`` int64: how many real tokens of its sequence or document stand before each key."""
        real = torch.ones(1, m, dtype=torch.int64, device=device) if self.key_mask is None else self.key_mask.long()
        count = real.cumsum(1)
        if self.segments is not None and m:
            count = count - torch.where(self.opens(self.segments), count - real, 0).cummax(1).values
        return (count - 1).clamp(min=0)

    def counts(self, n: int, m: int, device: torch.device | str = "cpu") -> Tensor:
        """``(batch or 1, heads or 1, n)`` int64: how many keys each query may see; of padding queries, any number."""
        if self.mask is not None:
            return self.allowed(n, m, device).sum(-1)
        if self.causal:
            return (self.query_positions(n, m, device) + 1).clamp(min=0)[:, None]
        real = torch.ones(1, m, dtype=torch.int64, device=device) if self.key_mask is None else self.key_mask.long()
        if self.segments is None:
            return real.sum(1)[:, None, None].expand(-1, 1, n)
        runs = self.opens(self.segments).cumsum(1) - 1
        sizes = torch.zeros_like(runs).scatter_add_(1, runs, real.expand_as(runs))
        return sizes.gather(1, runs)[:, None, m - n :]

    def real_queries(self, n: int) -> Tensor | None:
        """``(batch, n)`` bool, False = padding, of the last n tokens; True before the first key. None: no padding."""
        if self.key_mask is None:
            return None
        m = self.key_mask.shape[1]
        return self.key_mask[:, m - n :] if n <= m else torch.nn.functional.pad(self.key_mask, (n - m, 0), value=True)

    def query_positions(self, n: int, m: int, device: torch.device | str = "cpu") -> Tensor:
        """``(batch or 1, n)`` int64: positions of the queries, the last ``n`` tokens; negative before the first key."""
        positions = self.positions(m, device)
        if n <= m:
            return positions[:, m - n :]
        before = torch.arange(m - n, 0, device=device).expand(positions.shape[0], -1)
        return torch.cat([before, positions], dim=1)

    def allowed(
        self,
        n: int,
        m: int,
        device: torch.device | str = "cpu",
        rows: slice | None = None,
        cols: slice | None = None,
    ) -> Tensor:
        """``(batch or 1, heads or 1, n, m)`` bool: all of it, or ``rows`` and ``cols``, dense; True = may be seen."""
        start, stop, _ = (rows or slice(0, n)).indices(n)
        first, last, _ = (cols or slice(0, m)).indices(m)
        queries = torch.arange(start, stop, device=device)[:, None] + (m - n)
        columns = torch.arange(first, last, device=device)[None, :]
        everywhere = torch.ones(stop - start, last - first, dtype=torch.bool, device=device)
        allowed = (columns <= queries if self.causal else everywhere)[None]
        if self.key_mask is not None:
            allowed = allowed & self.key_mask[:, None, first:last]
        if self.segments is not None:
            own = self.segments[:, m - n + start : m - n + stop, None]
            allowed = allowed & (own == self.segments[:, None, first:last])
        return allowed[:, None] if self.mask is None else allowed[:, None] & self.mask[:, :, start:stop, first:last]

    def among_tokens(self, n: int, m: int, device: torch.device | str = "cpu", rows: slice | None = None) -> Tensor:
        """`allowed`, of queries that are tokens: none of padding, and none that stands before the first key."""
        seen = self.allowed(n, m, device, rows)
        seen = seen & (torch.arange(m - n, m, device=device) >= 0)[rows or slice(None), None]
        real = self.real_queries(n)
        return seen if real is None else seen & real[:, None, rows or slice(None), None]

    def of(self, sequence: int, head: int | None = None) -> Layout:
        """The layout of one sequence of the batch, or of one head of it."""
        keys, segments = (x if x is None else x[sequence : sequence + 1] for x in (self.key_mask, self.segments))
        mask, bias = (x if x is None else x[min(sequence, x.shape[0] - 1)][None] for x in (self.mask, self.bias))
        if head is not None:
            mask, bias = (x if x is None or x.shape[1] == 1 else x[:, head : head + 1] for x in (mask, bias))
        return replace(self, key_mask=keys, segments=segments, mask=mask, bias=bias)

    def repeated(self, times: int) -> Layout:
        """The layout of a batch in which each sequence stands so many times, one after the other."""

        def each(x: Tensor | None) -> Tensor | None:
            return x if x is None or x.shape[0] == 1 else x.repeat_interleave(times, 0)

        keys, segments = (None if x is None else x.repeat_interleave(times, 0) for x in (self.key_mask, self.segments))
        return replace(self, key_mask=keys, segments=segments, mask=each(self.mask), bias=each(self.bias))

    def slice(self, n: int, m: int, rows: slice) -> tuple[Layout, int]:
        """The layout of the queries ``rows`` alone, with the number of leading keys that it is about.

        The end of ``rows`` stays aligned with the end of the keys kept, so a causal layout drops the keys that
        none of the rows can see.
        """
        stop = min(max(rows.stop + (m - n), 0), m) if (self.causal or self.segments is not None) else m
        if not self.causal and self.segments is not None:
            raise wrong("layout.segments", "rows of a bidirectional packed layout", "whole layouts when not causal")
        cut = replace(
            self,
            key_mask=None if self.key_mask is None else self.key_mask[:, :stop],
            segments=None if self.segments is None else self.segments[:, :stop],
            grid=None,
            mask=None if self.mask is None else self.mask[:, :, rows, :stop],
            bias=None if self.bias is None else self.bias[:, :, rows, :stop],
        )
        return cut, stop


def check_mask(mask: Tensor, q: Tensor, k: Tensor) -> None:
    """Raises an error that names the layout's mask if it does not fit ``q`` and ``k``."""
    if mask.dtype != torch.bool:
        hint = "torch.bool, True = may be seen (of a mask that is added to scores: `mask == 0`)"
        raise wrong("layout.mask", f"dtype {mask.dtype}", hint, TypeError)
    check_pairs("mask", mask, q, k)


def check_bias(bias: Tensor, q: Tensor, k: Tensor) -> None:
    """Raises an error that names the layout's bias if it does not fit ``q`` and ``k``, or is not finite (on a CPU)."""
    if not bias.is_floating_point():
        hint = "a floating-point dtype: what is added to scores (True and False are for `mask`)"
        raise wrong("layout.bias", f"dtype {bias.dtype}", hint, TypeError)
    check_pairs("bias", bias, q, k)
    if bias.device.type == "cpu" and not torch.compiler.is_compiling() and not bias.isfinite().all():
        raise wrong("layout.bias", "numbers that are not finite", "finite ones; what is to be hidden is for `mask`")


def check_pairs(name: str, given: Tensor, q: Tensor, k: Tensor) -> None:
    """Raises an error that names the layout's field if its shape or device does not fit ``q`` and ``k``."""
    (batch, heads, n), m = q.shape[:3], k.shape[2]
    fits = given.dim() == 4 and given.shape[0] in (1, batch) and given.shape[1] in (1, heads)
    if not fits or tuple(given.shape[2:]) != (n, m):
        sizes = f"({batch} or 1, {heads} or 1, {n}, {m})"
        raise wrong(f"layout.{name}", f"shape {tuple(given.shape)}", f"(batch or 1, heads or 1, n, m) = {sizes}")
    if given.device != k.device:
        raise wrong(f"layout.{name}", f"device {given.device}", f"the device of k, {k.device}")


def plane_of(layout: Layout, m: int) -> tuple[int, int]:
    """Rows and columns of ``m`` cells; a line is one row.

    Raises:
        ValueError: the grid has three axes.
    """
    sizes = [1, *(layout.grid or (m,))]
    if len(sizes) > 3:
        raise wrong("layout.grid", str(layout.grid), "a line or a plane")
    return sizes[-2], sizes[-1]
