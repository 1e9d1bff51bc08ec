"""Attention to the keys whose scores reach a bound, found by a tree of balls in the place of all scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits, accumulate_dtype, masked_softmax, repeat_heads
from regard.kernels import packing as alone
from regard.mechanisms.cached import Cached
from regard.routers.ball_tree import BallTree

FEW = 16
"""Queries up to which all keys are scored: a tree would cost more."""
RATE = 0.4
"""Of the logarithm of the keys, under the root of the bound: it leaves n^0.8 of Gaussian scores."""


@published(
    "half_space",
    family="sparse",
    row=341,
    title="HSR-Enhanced Sparse Attention Acceleration",
    arxiv="2410.10165",
    year=2024,
    aliases=("hsr", "half_space_reporting"),
    fidelity="hand values",
    missing="the index is made for each whole call; decoding scores all cached keys",
    claim=(
        Claim(
            "what is reported is what all scores say, at most 2 n^0.8 keys of Gaussian ones, at an error of 1%",
            cells="half_space.reported",
            holds="half_space.is_few",
        ),
        Claim(
            "in 8 dimensions or fewer the balls that are looked at grow slower than the keys",
            cells="half_space.looked_at",
            holds="half_space.is_sublinear",
        ),
    ),
)
class HalfSpace(Cached):
    """Each query attends to the keys whose scores reach its bound, by softmax or by a power of what is above.

        C_i = {j : s_ij ≥ b_i},   s_ij = q_i · k_j / √d,   b_i = σ ‖q_i‖ √(0.4 ln n_i) / √d
        A_ij = exp(s_ij) / Σ_{j' ∈ C_i} exp(s_ij'),   or   (s_ij − b_i)^α / Σ_{j' ∈ C_i} (s_ij' − b_i)^α

    n_i is the number of keys that i sees, σ (``spread``) the standard deviation of a coordinate of the keys: of
    Gaussian ones, n^{4/5} are left. A query that no key reaches gets zeros. C is found by a
    `regard.routers.ball_tree.BallTree`, which pays in few dimensions only: in 64 it looks at every leaf.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: at most that of softmax attention and of the tree, ``2 n (2 m / leaf) d`` a head. State: all keys and values.

    Args:
        spread: σ. power: α, None for softmax. bound: b for all queries, in place of the formula. leaf: of the tree.

    Raises:
        ValueError: a negative spread, or a power below one.

    Paper: Chen et al., arXiv 2410.10165, whose half-space reporting is replaced by a tree that can be built.
    """

    traits = Traits(cross=False, rows="at most one", sign="nonnegative", flops="at most")

    def __init__(
        self, spread: float = 1.0, power: int | None = None, bound: float | None = None, leaf: int = 32
    ) -> None:
        super().__init__()
        if spread < 0:
            raise wrong("spread", str(spread), "0 or more")
        if power is not None and power < 1:
            raise wrong("power", str(power), "at least 1, or None for softmax")
        self.spread, self.power, self.bound, self.leaf = spread, power, bound, leaf

    def bounds(self, q: Tensor, count: Tensor) -> Tensor:
        """``(b, h, n)``: b of each query, which sees ``count (n,)`` keys."""
        if self.bound is not None:
            return torch.full_like(q[..., 0], self.bound)
        return self.spread * q.norm(dim=3) * (RATE * count.clamp(min=1).log() / q.shape[3]).sqrt().to(q.dtype)

    def paid(self, scores: Tensor, bounds: Tensor, seen: Tensor) -> Tensor:
        """Weights of all pairs, which are ``seen``."""
        reached = seen & (scores >= bounds[..., None])
        if self.power is None:
            return masked_softmax(scores, reached)
        above = torch.where(reached, scores - bounds[..., None], 0) ** self.power
        return above / above.sum(-1, keepdim=True).clamp(min=torch.finfo(above.dtype).tiny)

    @staticmethod
    def places(n: int, m: int, causal: bool, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of each of the last queries the position and how many keys it sees, ``(n,)``."""
        here = torch.arange(m - n, m, device=device)
        count = (here + 1).clamp(min=0) if causal else torch.full_like(here, m)
        return here if causal else torch.full_like(here, m), count

    def map(self, q: Tensor, k: Tensor, causal: bool) -> Tensor:
        """A of one document, of all pairs."""
        wide = accumulate_dtype(q.dtype)
        q, k = q.to(wide), repeat_heads(k, q.shape[1]).to(wide)
        here, count = self.places(q.shape[2], k.shape[2], causal, q.device)
        seen = torch.arange(k.shape[2], device=q.device) <= here[:, None]
        return self.paid(q @ k.mT * q.shape[3] ** -0.5, self.bounds(q, count.to(wide)), seen)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        return self.rows(q, k, layout, slice(0, q.shape[2]), **signals)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)

        def run(q: Tensor, k: Tensor, rows: slice) -> Tensor:
            return self.map(q, k, layout.causal)[:, :, rows].to(q.dtype)

        return run(q, k, rows) if layout.regular else alone.maps(run, q, k, layout, rows)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if q.shape[2] <= FEW or not k.shape[2]:
                return (self.map(q, k, layout.causal) @ repeat_heads(v, q.shape[1]).to(accumulate_dtype(v.dtype))).to(v)
            return self.by_tree(q, k, v, layout.causal)

        return run(q, k, v) if layout.regular else alone.per_sequence(run, q, k, v, layout)

    def by_tree(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """The output over the reported keys alone."""
        wide = accumulate_dtype(q.dtype)
        (b, h, n, d), m, e, group = q.shape, k.shape[2], v.shape[3], q.shape[1] // k.shape[1]
        here, count = self.places(n, m, causal, q.device)
        q, k, v, kind = q.to(wide), k.to(wide), v.to(wide), v.dtype
        bounds, tree = self.bounds(q, count.to(wide)), BallTree.of(k, self.leaf)
        at, _ = tree.leaves(q, bounds * d**0.5)
        keys = tree.keys(at, group)
        place = keys.clamp(max=m - 1)
        own = (at[0] * k.shape[1] + at[1] // group)[:, None] * m + place
        scores = (k.reshape(-1, d)[own] @ q[at[:3]][..., None])[..., 0] * d**-0.5
        reached = (keys < m) & (place <= here[at[2]][:, None]) & (scores >= bounds[at[:3]][:, None])
        pair, slot = reached.nonzero().unbind(1)
        row = ((at[0] * h + at[1]) * n + at[2])[pair]
        above, value = scores[pair, slot], v.reshape(-1, e)[own[pair, slot]]
        if self.power is None:
            top = above.new_full((b * h * n,), -torch.inf).scatter_reduce(0, row, above.detach(), "amax")
            share = (above - top[row]).exp()
        else:
            share = (above - bounds[at[:3]][pair]) ** self.power
        total = above.new_zeros(b * h * n).index_add(0, row, share)
        out = value.new_zeros(b * h * n, e).index_add(0, row, share[:, None] * value)
        out = out / total.clamp(min=torch.finfo(wide).tiny)[:, None]
        return out.view(b, h, n, e).to(kind)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        n, m = shape.n, shape.keys
        each = 4 * n * (m + self.leaf) * max(shape.head_dim, shape.values)
        return Cost(shape.batch * shape.heads * each, shape.io_bytes, shape.cache_bytes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("by the formula", cls(0.5, leaf=4), heads=3, kv_heads=3),
            Example("squares above a bound, grouped", cls(power=2, bound=-0.3, leaf=5), heads=4, kv_heads=2),
        ]
