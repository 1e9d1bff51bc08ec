"""Fused softmax attention under a bias that depends on the distance of query and key alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.mechanism import accumulate_dtype, repeat_heads
from regard.kernels import dense
from regard.kernels.tiled import ROWS, split, visible


@dataclass(frozen=True)
class Diagonals:
    """A piece, as `dense.over` takes it: some queries over the first keys, with a bias for each diagonal.

    Queries come in reverse, so that the biases of each row begin one number behind those of the row before: all of
    them are one view of ``biases``, uncopied.

    Args:
        rows, cols: which queries, which keys. biases: ``(h, rows + cols − 1)``, from the last query's first key on.
    """

    rows: slice
    cols: slice
    biases: Tensor
    causal: ClassVar[bool] = False
    alone: ClassVar[bool] = True
    batch: ClassVar[slice] = slice(None)

    def queries(self, x: Tensor) -> Tensor:
        """``(b, h, n, …)`` -> ``(b, h, rows, …)``, the last first."""
        return x[:, :, self.rows].flip(2)

    def keys(self, x: Tensor) -> Tensor:
        """``(b, h, m, d)`` -> ``(b, h, cols, d)``."""
        return x[:, :, self.cols]

    def restore(self, x: Tensor, heads: int) -> Tensor:
        """``queries`` undone."""
        return x.flip(2)

    def add_keys(self, total: Tensor, part: Tensor) -> None:
        """Adds a gradient shaped like ``keys`` to ``total (b, h, m, d)``."""
        total[:, :, self.cols] += part

    def bias(self, dtype: torch.dtype) -> Tensor:
        """``(1, h, rows, cols)``, what the operator adds to the scores."""
        rows, cols = self.rows.stop - self.rows.start, self.cols.stop
        return self.biases.to(dtype).unfold(1, cols, 1)[None, :, :rows]

    def sighted(self) -> Tensor | None:
        """Which rows see any key."""
        finite = F.pad((~self.biases.isneginf()).cumsum(1), (1, 0))
        seen = finite[:, self.cols.stop :] > finite[:, : -self.cols.stop]
        return None if bool(seen.all()) else seen[None]


def attend(q: Tensor, k: Tensor, v: Tensor, biases: Tensor, causal: bool) -> Tensor:
    """Softmax attention with a constant bias for each head and distance.

        A_ij = softmax_j(q_i·k_j / √d + biases_h[j − i + n − 1]),   causal: only j ≤ i + m − n

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)``, ``biases (h, n + m − 1)`` -> ``(b, h, n, e)``.
    Cost: 4 `tiled.cells` max(d, e) FLOPs a head; memory O(n + m). Half precision runs in float32. Exact but for what
    is `lost` in rounding.
    """
    n, m, dtype, wide = q.shape[2], k.shape[2], q.dtype, accumulate_dtype(q.dtype)
    q, k, v = q.to(wide), repeat_heads(k, q.shape[1]).to(wide), v.to(wide)
    biases = biases.detach().to(wide)
    if n and m and (causal or n == m):  # every row that sees a key sees that of its own place
        biases = biases.masked_fill(biases < lost(q.detach(), k.detach(), biases[:, m - 1]), -torch.inf)
    if causal:
        biases = biases.masked_fill(torch.arange(biases.shape[1], device=q.device) >= m, -torch.inf)
    pieces = []
    for rows in split(0, n, ROWS):
        cols = slice(0, visible(rows, n, m, causal))
        if cols.stop:
            pieces.append(Diagonals(rows, cols, biases[:, n - rows.stop : n - rows.start + cols.stop - 1]))
    return dense.over(q, k, v, pieces).out.to(dtype)


def lost(q: Tensor, k: Tensor, own: Tensor) -> Tensor:
    """``(h, 1)``: biases below it give weights that are lost in the rounding of their row, whatever q and k.

    With r = max |q_i| |k_j| / √d the key of a row's own place scores ``own − r`` or more, another ``bias + r`` or
    less: all m weights of such keys together are below an eighth of the precision. Numbers that small are slow.

    Shapes: ``q (b, h, n, d)``, ``k (b, h, m, d)``, ``own (h,)``.
    """
    longest = [x.norm(dim=-1).amax((0, 2)) if x.numel() else x.new_zeros(x.shape[1]) for x in (q, k)]
    rounding = math.log(torch.finfo(q.dtype).eps / 8 / max(k.shape[2], 1))
    return (own - 2 * q.shape[-1] ** -0.5 * longest[0] * longest[1] + rounding)[:, None]
