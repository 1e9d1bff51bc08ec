"""The family that scores every pair, turns each row's scores into weights by softmax, and runs in tiles."""

from __future__ import annotations

from torch import Tensor

from regard.core.cost import Cost, Shape
from regard.core.layout import Layout
from regard.core.mechanism import Traits, accumulate_dtype, masked_softmax, repeat_heads
from regard.kernels import tiled
from regard.kernels.tiled import Score, Span
from regard.mechanisms.cached import Cached


class Scored(Cached):
    """The base of softmax attention under any score.

        A_ij = exp(s_ij) / Σ_j exp(s_ij)

    A subclass gives `score`, and `prepared` where queries and keys are changed before they are scored. Both get the
    call's signals: `score` whole, `prepared` those of its queries and keys.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: 2 (d + e) FLOPs for each score of the tiles; memory O(n + m). State: all keys and values.
    """

    traits = Traits(masked=True, rows="one", sign="nonnegative")

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Score:
        """s for queries like ``q`` over ``m`` keys."""
        raise NotImplementedError

    def prepared(self, q: Tensor, k: Tensor, **signals: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys as they are scored, ``(b, h, tokens, D)``."""
        return q, k

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        return self.rows(q, k, layout, slice(0, q.shape[2]), **signals)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        allowed = layout.allowed(q.shape[2], k.shape[2], q.device, rows)
        return self.normalised(self.scores(q, k, layout, rows, **signals), allowed)

    def scores(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        """Some rows of s, dense."""
        (start, stop, _), m = rows.indices(q.shape[2]), k.shape[2]
        own = {name: x[:, :, start:stop] if self.signals[name].side == "query" else x for name, x in signals.items()}
        left, right = self.prepared(q[:, :, start:stop], repeat_heads(k, q.shape[1]), **own)
        score = self.score(q, m, layout, **signals)
        return score(left, right, Span(slice(start, stop), slice(0, m))).to(q.dtype)

    def normalised(self, scores: Tensor, allowed: Tensor) -> Tensor:
        """Rows of A from their scores."""
        return masked_softmax(scores, allowed)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        score = self.score(q, k.shape[2], layout, **signals)
        left, right = self.prepared(q, repeat_heads(k, q.shape[1]), **signals)
        return tiled.attend(left, right, repeat_heads(v, q.shape[1]), layout, score).to(q.dtype)

    def places(self, q: Tensor, m: int, layout: Layout) -> tuple[Tensor, Tensor]:
        """Positions of queries ``(b or 1, n)`` and keys ``(b or 1, m)`` in the precision of sums."""
        wide = accumulate_dtype(q.dtype)
        return layout.query_positions(q.shape[2], m, q.device).to(wide), layout.positions(m, q.device).to(wide)

    def products(self, shape: Shape) -> tuple[int, int]:
        """Multiplications of each score, and of each head before (`prepared`)."""
        return shape.head_dim, 0

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        cells, (each, before) = tiled.cells(shape.n, shape.keys, layout.causal), self.products(shape)
        flops = 2 * shape.batch * shape.heads * (cells * (each + shape.values) + before)
        return Cost(flops, shape.io_bytes, shape.cache_bytes + self.signal_bytes(shape))
