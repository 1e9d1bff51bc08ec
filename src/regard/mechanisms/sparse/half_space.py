"""Attention to the keys whose scores reach a bound, found by a tree of balls in the place of all scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Mechanism, Traits, accumulate_dtype, masked_softmax, repeat_heads
from regard.core.state import State, count_new
from regard.kernels import packing as alone
from regard.mechanisms.cached import KeyValues
from regard.routers.ball_tree import BallTree


@dataclass(frozen=True)
class Indexed(State):
    """All keys and values, and the tree of the first of them.

    Args:
        cache: every key and value so far. order, centres, radii: of the tree, as of `BallTree`; empty before there is
            one.
    """

    cache: KeyValues
    order: Tensor
    centres: tuple[Tensor, ...]
    radii: tuple[Tensor, ...]


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
    claim=(
        Claim(
            "what is reported is what all scores say, at most 2 n^0.8 keys of Gaussian ones",
            cells="half_space.reported",
            holds="half_space.is_few",
        ),
        Claim(
            "where few keys take nearly all attention, the error is 1% of a value at most",
            cells="half_space.reported",
            holds="half_space.errs_little",
        ),
        Claim(
            "in 8 dimensions or fewer the balls that are looked at grow slower than the keys",
            cells="half_space.looked_at",
            holds="half_space.is_sublinear",
        ),
    ),
)
class HalfSpace(Mechanism):
    """Each query attends to the keys whose scores reach its bound, by softmax or by a power of what is above.

        C_i = {j : s_ij ≥ b_i},   s_ij = q_i · k_j / √d,   b_i = σ ‖q_i‖ √(0.4 ln n_i) / √d
        A_ij = exp(s_ij) / Σ_{j' ∈ C_i} exp(s_ij'),   or   (s_ij − b_i)^α / Σ_{j' ∈ C_i} (s_ij' − b_i)^α

    n_i is the number of keys that i sees, σ (``spread``) the standard deviation of a coordinate of the keys: of
    Gaussian ones, n^{4/5} are left. A query that no key reaches gets zeros. C is found by a
    `regard.routers.ball_tree.BallTree`, which pays in few dimensions only: in 64 it looks at every leaf.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: at most that of softmax attention and of the tree, ``2 n (2 m / leaf) d`` a head. State: all keys and values,
    and a tree of the first ``leaf 2^i`` keys, as many as there are; decoding scores those behind them as they are, and
    makes the tree anew when these have become as many.

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
        here, count = self.places(q.shape[2], k.shape[2], causal, q.device)
        return self.reported(q, k, v, here, count, BallTree.of(k, self.leaf), None)

    def reported(
        self, q: Tensor, k: Tensor, v: Tensor, here: Tensor, count: Tensor, tree: BallTree, real: Tensor | None
    ) -> Tensor:
        """The output over the keys that reach their bounds: those of the tree by it, those behind it by their scores.

        Args:
            here: ``(n,)``, the last key in the row of each query. count: how many keys it sees, ``(n,)`` or ``(b, 1,
                n)``. tree: of the first keys. real: ``(b, m)`` bool, False for padding.
        """
        wide = accumulate_dtype(q.dtype)
        (b, h, n, d), m, e, group = q.shape, k.shape[2], v.shape[3], q.shape[1] // k.shape[1]
        q, k, v, kind = q.to(wide), k.to(wide), v.to(wide), v.dtype
        bounds = self.bounds(q, count.to(wide))
        at, _ = tree.leaves(q, bounds.detach() * d**0.5)
        keys = tree.keys(at, group)
        place, flat = keys.clamp(max=max(tree.m, 1) - 1), k.reshape(-1, d)
        scores = (flat[self.own(at, place, k, group)] @ q[at[:3]][..., None])[..., 0] * d**-0.5
        reached = (keys < tree.m) & (place <= here[at[2]][:, None]) & (scores >= bounds[at[:3]][:, None])
        late = q @ repeat_heads(k[:, :, tree.m :], h).mT * d**-0.5
        shown = torch.arange(tree.m, m, device=q.device) <= here[:, None]
        shown = shown & (late >= bounds[..., None])
        if real is not None:
            reached = reached & real[at[0][:, None], place]
            shown = shown & real[:, None, None, tree.m :]
        (pair, slot), rest = reached.nonzero().unbind(1), shown.nonzero().unbind(1)
        above = torch.cat([scores[pair, slot], late[rest]])
        first = tuple(torch.cat([x[pair], y]) for x, y in zip(at[:3], rest[:3], strict=True))
        number = torch.cat([place[pair, slot], rest[3] + tree.m])
        row, value = (first[0] * h + first[1]) * n + first[2], v.reshape(-1, e)
        value = value[self.own(first, number[:, None], k, group)[:, 0]]
        if self.power is None:
            top = above.new_full((b * h * n,), -torch.inf).scatter_reduce(0, row, above.detach(), "amax")
            share = (above - top[row]).exp()
        else:
            share = (above - bounds[first]) ** self.power
        total = above.new_zeros(b * h * n).index_add(0, row, share)
        out = value.new_zeros(b * h * n, e).index_add(0, row, share[:, None] * value)
        out = out / total.clamp(min=torch.finfo(wide).tiny)[:, None]
        return out.view(b, h, n, e).to(kind)

    @staticmethod
    def own(at: tuple[Tensor, ...], place: Tensor, k: Tensor, group: int) -> Tensor:
        """Where the keys ``place (found, some)`` of these batches and heads are, among all of ``k (b, g, m, d)``."""
        return (at[0] * k.shape[1] + at[1] // group)[:, None] * k.shape[2] + place

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
        """No keys, and a tree of none."""
        cache = KeyValues.empty(batch, device, dtype)
        return Indexed(cache.seen, cache, cache.k.flatten(2).long(), (), ())

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, Any]:
        """Appends the new keys, makes the tree anew where they have outgrown it, and attends to those it reports."""
        self.check(q, k, v, Layout(causal=True), signals)
        positions, _ = count_new(state, key_mask, k.shape[2], k.shape[0])
        cache = state.cache.append(k, v, key_mask)
        m, covered = cache.k.shape[2], state.order.shape[2]
        size = self.covered(m)
        if size > covered:
            tree = BallTree.of(cache.k[:, :, :size].detach(), self.leaf)
        elif covered:
            tree = BallTree(state.order, self.leaf, state.centres, state.radii, covered)
        else:
            tree = BallTree.of(cache.k[:, :, :0].detach(), self.leaf)
        here = torch.arange(m - q.shape[2], m, device=q.device)
        out = self.reported(q, cache.k, cache.v, here, positions[:, None] + 1, tree, cache.key_mask)
        kept = (tree.order, tree.centres, tree.radii) if size else (tree.order[..., :0], (), ())
        return out, Indexed(cache.seen, cache, *kept)

    def covered(self, m: int) -> int:
        """How many of ``m`` keys the tree of a state holds: all of its leaves are full."""
        return self.leaf << ((m // self.leaf).bit_length() - 1) if m >= self.leaf else 0

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        n, m = shape.n, shape.keys
        each = 4 * n * (m + self.leaf) * max(shape.head_dim, shape.values)
        size, wide = self.covered(m), max(shape.itemsize, 4)
        index = 8 * size + max(2 * size // self.leaf - 1, 0) * (shape.head_dim + 1) * wide
        state = shape.cache_bytes + shape.batch * shape.groups * index
        return Cost(shape.batch * shape.heads * each, shape.io_bytes, state)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("by the formula", cls(0.5, leaf=4), heads=3, kv_heads=3),
            Example("squares above a bound, grouped", cls(power=2, bound=-0.3, leaf=5), heads=4, kv_heads=2),
        ]
