"""What is added to scores because of where queries and keys stand: by slopes, by buckets and by tables of distances."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Signal, accumulate_dtype
from regard.kernels.scan.decays import CLOSED
from regard.kernels.tiled import Score
from regard.mechanisms.linear.lightning import alibi_slopes
from regard.mechanisms.scored.parts.tile_scores import Between, Offsets, Slopes
from regard.patterns.grid import Sizes, as_grid, coordinates


class Bias(nn.Module):
    """``b_ij`` of the places of queries and keys, which count the real tokens of a sequence or document; here none.

    ``placed`` says that it knows order, ``learned`` that it may be of either sign, ``bidirectional`` that there is one
    for later keys too.
    """

    placed, learned, bidirectional = False, False, True
    signals: Mapping[str, Signal] = MappingProxyType({})

    def at(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Score | None:
        """b for queries like ``q`` over ``m`` keys."""
        return None

    def check(self, q: Tensor, k: Tensor, layout: Layout) -> None:
        """Raises an error that names what does not fit."""


class Linear(Bias):
    """``b_ij = −s_h |p_i − p_j|``, in bidirectional attention the same on both sides.

    Args:
        slopes: s, one for each head, at least 0; None for ``2^{−8h/H}``, h = 1 … H (for H no power of two, those of
            the powers around).

    Paper: Press et al., arXiv 2108.12409.
    """

    placed = True

    def __init__(self, slopes: Sequence[float] | None = None) -> None:
        super().__init__()
        if slopes is not None and min(slopes) < 0:
            raise wrong("slopes", str(list(slopes)), "numbers of at least 0: distance cannot raise a score")
        self.slopes = None if slopes is None else tuple(slopes)

    def at(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Slopes:
        return Slopes(self.rates(q), layout.query_positions(q.shape[2], m, q.device), layout.positions(m, q.device))

    def rates(self, q: Tensor) -> Tensor:
        """The slopes ``(h,)`` in the precision of sums."""
        slopes = alibi_slopes(q.shape[1]) if self.slopes is None else self.slopes
        if len(slopes) != q.shape[1]:
            raise wrong("q", f"{q.shape[1]} heads", f"{len(slopes)}, the number of slopes")
        return torch.tensor(slopes, dtype=accumulate_dtype(q.dtype), device=q.device)


class Tabled(Bias):
    """A bias read from a table ``(heads, entries)``, normal at first with deviation 0.02."""

    placed, learned = True, True

    def __init__(self, heads: int, entries: int) -> None:
        super().__init__()
        if heads < 1:
            raise wrong("heads", str(heads), "at least 1")
        self.table = nn.Parameter(torch.empty(heads, entries))
        nn.init.trunc_normal_(self.table, std=0.02)

    def check(self, q: Tensor, k: Tensor, layout: Layout) -> None:
        if q.shape[1] != self.table.shape[0]:
            raise wrong("q", f"{q.shape[1]} heads", f"{self.table.shape[0]}, the heads of the bias table")


class Buckets(Tabled):
    """``b_ij = table[h, bucket(p_i − p_j)]``: exact for near keys, by the logarithm of the distance for far ones.

    Of the N buckets of a direction the first N / 2 are one distance each; the others divide the logarithms from there
    to ``max_distance``, beyond which all share the last. Causal, N is ``buckets``; bidirectional, half of them each.

    Args:
        heads: of q. buckets: an even number. max_distance: above half of them.

    Paper: Raffel et al. (T5), arXiv 1910.10683, where scores are not scaled: ``dot(scale=1.0)``.
    """

    def __init__(self, heads: int = 4, buckets: int = 32, max_distance: int = 128) -> None:
        if buckets < 4 or buckets % 2:
            raise wrong("buckets", str(buckets), "an even number of at least 4")
        if max_distance <= buckets // 2:
            raise wrong("max_distance", str(max_distance), f"above half of the {buckets} buckets")
        super().__init__(heads, buckets)
        self.max_distance = max_distance

    def at(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Offsets:
        far = self.max_distance
        index = bucket(torch.arange(-far, far + 1, device=q.device), self.table.shape[1], far, layout.causal)
        table = self.table.to(accumulate_dtype(q.dtype)).index_select(1, index)
        queries, keys = layout.query_positions(q.shape[2], m, q.device), layout.positions(m, q.device)
        return Offsets(table, (2 * far + 1,), [queries], [keys])


def bucket(back: Tensor, buckets: int, max_distance: int, causal: bool) -> Tensor:
    """The bucket of keys that lie so many tokens ``back``, below zero ahead; causal, those ahead are at no distance."""
    each = buckets if causal else buckets // 2
    distance, exact = back.clamp(min=0) if causal else back.abs(), each // 2
    steps = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (each - exact)
    found = torch.where(distance < exact, distance, exact + steps.long()).clamp(max=each - 1)
    return found if causal else found + each * (back < 0)


class Table(Tabled):
    """``b_ij = table[h, r_i − r_j]``: one number for each head and offset between the cells of a grid.

    Tokens are the cells in row-major order, r their coordinates; a side of g cells has 2 g − 1 offsets. On a line
    there may be more tokens than cells: all offsets of g − 1 and more share one number.

    Args:
        heads: of q. grid: 1 to 3 sizes.

    Papers: Shaw et al., arXiv 1803.02155 (clipped lines); Liu et al. (Swin), 2103.14030 (planes; 3-D in its follow-up).
    """

    def __init__(self, heads: int = 4, grid: Sizes = 128) -> None:
        sizes = tuple(2 * size - 1 for size in as_grid(grid))
        super().__init__(heads, math.prod(sizes))
        self.grid, self.sizes = as_grid(grid), sizes

    def at(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Offsets:
        places = layout.query_positions(q.shape[2], m, q.device).clamp(min=0), layout.positions(m, q.device)
        queries, keys = ([p] if len(self.grid) == 1 else coordinates(p, self.grid) for p in places)
        return Offsets(self.table.to(accumulate_dtype(q.dtype)), self.sizes, queries, keys)

    def check(self, q: Tensor, k: Tensor, layout: Layout) -> None:
        super().check(q, k, layout)
        if layout.grid is not None and layout.grid != self.grid:
            raise wrong("layout.grid", str(layout.grid), f"{self.grid}, the grid of the bias table")
        cells, last = math.prod(self.grid), layout.positions(k.shape[2], k.device)
        if len(self.grid) > 1 and last.numel() and int(last.max()) >= cells:
            raise wrong("k", f"{int(last.max()) + 1} tokens", f"at most {cells}, the cells of the grid {self.grid}")


class Forget(Bias):
    """``b_ij = Σ_{j < t ≤ i} log f_t``: what forget gates between the key and the query leave of the key; causal.

    log f is the signal ``log_forget (b, h, m)``, at most 0. A gate below exp(−2048) counts as shut that far.

    Paper: Lin et al., arXiv 2503.02130.
    """

    placed, bidirectional = True, False
    signals: ClassVar = {"log_forget": Signal("log of the share of its past that a token keeps", high=0)}

    def at(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Between:
        log_forget = signals["log_forget"].double().clamp(min=-CLOSED)
        if layout.key_mask is not None:
            log_forget = log_forget.masked_fill(~layout.key_mask[:, None], 0)
        sums, n = log_forget.cumsum(2), q.shape[2]
        return Between(F.pad(sums, (max(n - m, 0), 0))[:, :, max(m - n, 0) :], sums)


BIASES = {"none": Bias, "alibi": Linear, "t5": Buckets, "table": Table, "forget": Forget}
