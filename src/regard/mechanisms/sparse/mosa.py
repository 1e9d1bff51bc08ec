"""Mixture of sparse attention: each head chooses the tokens that attend, to one another alone."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Signal, Traits, masked_softmax, repeat_heads
from regard.kernels import dense
from regard.kernels import packing as alone
from regard.kernels.rows import taken
from regard.mechanisms.cached import Cached
from regard.patterns.choice import best


@published(
    "mosa",
    family="sparse",
    row=231,
    title="Mixture of Sparse Attention: Content-Based Learnable Sparse Attention via Expert-Choice Routing",
    arxiv="2505.00315",
    year=2025,
    aliases=("mixture_of_sparse_attention",),
    fidelity="authors' code",
    claim=Claim(
        text="pairs attended to fall with the square of the sparsity; what a head takes changes with later tokens, and "
        "no longer does by a threshold",
        cells="routed.expert_choice",
        holds="routed.experts_leak",
    ),
)
class ExpertChoice(Cached):
    """Each head takes the k tokens with the highest routes of their own; these attend to one another, by their routes.

        A_ij = r_i softmax over {j ∈ S, j ≤ i} of q_i · k_j / √d for i ∈ S, else 0
        S = the k tokens with the largest r,   k = min(max(T // sparsity, 2), T) of a sequence of T

    A is ``weights``, r the signal ``route``; ties go to the first. The choice reads later tokens, causal or not: it
    `leaks`. With ``threshold``, S is the tokens with r above it instead, which later ones do not change: a
    model decodes with it what it has learnt without.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)``, ``route (b, h, m)`` -> ``(b, h, n, e)``.
    Cost: ``4 k² max(d, e)`` FLOPs a head. State: all keys, values and routes.

    Args:
        sparsity: T / k. first: whether the first token is always among them. threshold: None for the best k.

    Raises:
        ValueError: a sparsity below one, a threshold outside of [0, 1).

    Paper: Piękos et al., arXiv 2505.00315. Its layer, which projects the chosen tokens only, turns half of their
    coordinates and has a few dense heads beside, is `networks.mosa.MosaHeads`.
    """

    signals = MappingProxyType(
        {"route": Signal("the larger, the sooner the head takes the token", "key", "heads", low=0, high=1)}
    )
    traits = Traits(
        cross=False,
        rows="at most one",
        sign="nonnegative",
        resumable=False,
        leaks=True,
        flops="at most",
    )

    def __init__(self, sparsity: int = 16, first: bool = False, threshold: float | None = None) -> None:
        super().__init__()
        if sparsity < 1:
            raise wrong("sparsity", str(sparsity), "at least 1, where every token is taken")
        if threshold is not None and not 0 <= threshold < 1:
            raise wrong("threshold", str(threshold), "0 to below 1, or None for the best tokens")
        self.sparsity, self.first, self.threshold = sparsity, first, threshold
        if threshold is not None:
            self.traits = Traits(cross=False, rows="at most one", sign="nonnegative", flops="at most")

    def count(self, tokens: int) -> int:
        """k of so many tokens."""
        return min(max(tokens // self.sparsity, 2), tokens)

    def taken(self, route: Tensor) -> Tensor:
        """``(b, h, k)`` int64: the tokens taken, in order; −1 behind where there are fewer."""
        m = route.shape[2]
        if self.threshold is None:
            order = route.detach().clone()
            if self.first and m:
                order[:, :, 0] = torch.inf
            return best(order, self.count(m))
        chosen = route.detach() > self.threshold
        if self.first and m:
            chosen[:, :, 0] = True
        most = int(chosen.sum(2).max()) if chosen.numel() else 0
        return best(torch.where(chosen, 0.0, -torch.inf), most)

    def seen(self, route: Tensor, n: int, causal: bool) -> Tensor:
        """``(b, h, n, m)`` bool: which pairs of one document attend."""
        m, index = route.shape[2], self.taken(route)
        inside = torch.zeros(*route.shape[:2], m + 1, dtype=torch.bool, device=route.device)
        inside = inside.scatter_(2, index.masked_fill(index < 0, m), True)[..., :m]
        pairs = inside[:, :, :, None] & inside[:, :, None]
        pairs = pairs.tril() if causal else pairs
        return torch.nn.functional.pad(pairs[:, :, max(m - n, 0) :], (0, 0, max(n - m, 0), 0))

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        (n, m), route = (q.shape[2], k.shape[2]), signals["route"]
        seen = torch.zeros(*q.shape[:2], n, m, dtype=torch.bool, device=q.device)
        for batch, queries, keys in alone.parts(layout, len(q), n, m, q.device):
            part = self.seen(route[batch, :, keys], len(queries), layout.causal)
            for row in range(*batch.indices(len(q))):
                seen[row, :, queries[:, None], keys] = part[row if batch == slice(None) else 0]
        a = masked_softmax(q @ repeat_heads(k, q.shape[1]).mT * q.shape[3] ** -0.5, seen)
        own = torch.nn.functional.pad(route[:, :, max(m - n, 0) :], (max(n - m, 0), 0))
        return a * own[..., None]

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        return self.weights(q, k, layout, **signals)[:, :, rows]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        (n, m), route = (q.shape[2], k.shape[2]), signals["route"]
        out = q.new_zeros(*q.shape[:3], v.shape[3]) + sum(x[..., :0].sum() for x in (q, k, v, route))
        for batch, queries, keys in alone.parts(layout, len(q), n, m, q.device):
            if len(queries):
                own, values, routes = (x[batch, :, keys] for x in (k, v, route))
                part = self.among(own, values, routes, q[batch, :, queries], layout.causal)
                places = (torch.arange(len(q))[batch, None, None], torch.arange(q.shape[1])[None, :, None], queries)
                out = out.index_put(tuple(x.to(q.device) for x in places), part)
        return out

    def among(self, k: Tensor, v: Tensor, route: Tensor, q: Tensor, causal: bool) -> Tensor:
        """The last queries of one document: the chosen ones over the chosen keys, zeros for the others."""
        n, m, index = q.shape[2], k.shape[2], self.taken(route)
        real, place = index >= 0, index.clamp(min=0)
        if n > m:
            more = self.among(k, v, route, q[:, :, n - m :], causal)
            return torch.nn.functional.pad(more, (0, 0, n - m, 0))
        mine = real & (index >= m - n)
        width = int(mine.sum(2).max()) if mine.numel() else 0
        last = index.shape[2] - int(real.sum(2).min()) + width if width else 0
        rows = slice(max(index.shape[2] - last, 0), None)
        keys, values = (taken(repeat_heads(x, q.shape[1]), place.flatten(0, 1)) for x in (k, v))
        at = (place[:, :, rows] - (m - n)).clamp(min=0)
        queries = taken(q, at.flatten(0, 1))
        seen = real[:, :, None].expand(-1, -1, queries.shape[2], -1)
        if causal:
            seen = seen & (place[:, :, None] <= place[:, :, rows, None])
        piece = dense.Piece(slice(0, queries.shape[2]), slice(0, index.shape[2]), mask=seen)
        part = dense.over(queries, keys, values, [piece] if index.shape[2] else []).out
        part = part * (route.gather(2, place[:, :, rows]) * mine[:, :, rows]).to(part.dtype)[..., None]
        blank = part.new_zeros(*q.shape[:3], v.shape[3])
        return blank.scatter_add(2, at[..., None].expand_as(part), part)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        count = self.count(shape.keys) if self.threshold is None else shape.keys
        flops = 4 * shape.batch * shape.heads * min(count, shape.n) * count * max(shape.head_dim, shape.values)
        return Cost(flops, shape.io_bytes, shape.cache_bytes + self.signal_bytes(shape))

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("a third of the tokens", cls(3), heads=4, kv_heads=2),
            Example("a fifth and the first", cls(5, first=True), heads=3, kv_heads=3),
            Example("above a threshold", cls(3, threshold=0.5)),
        ]
