"""Routing attention: clusters of tokens by their content, each of whose nearest attend to one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import (
    Example,
    LayerSpec,
    Traits,
    accumulate_dtype,
    check_sizes,
    masked_softmax,
    repeat_heads,
)
from regard.kernels import dense
from regard.kernels import packing as alone
from regard.kernels.rows import flat_index, taken
from regard.mechanisms.cached import Cached
from regard.patterns.choice import best

SHARE = 1e-2
"""What is added to the number of clusters of a token before its outputs are divided by it, as the authors have it."""
EPSILON = 1e-6


@published(
    "routing_transformer",
    family="sparse",
    row=249,
    title="Efficient Content-Based Sparse Attention with Routing Transformers",
    arxiv="2003.05997",
    year=2020,
    aliases=("routing_attention", "content_routing"),
    fidelity="hand values",
    claim=(
        Claim(
            "one cluster of all tokens is softmax attention of normed queries and keys",
            cells="clusters.one_cluster",
            holds="common.within(most=1e-9)",
        ),
        Claim(
            "with √n clusters its products grow as n^1.5",
            cells="clusters.products",
            holds="clusters.grows_so",
        ),
        Claim(
            "a small language model with clustered layers loses less than one of windows at as many products",
            cells="clusters.language",
            holds="clusters.loses_less",
        ),
    ),
)
class ContentRouting(Cached):
    """The w tokens nearest to each of c centroids attend to one another; outputs are the mean of a token's clusters.

        q' = LN(q),  k' = LN(k),  S_c = the w tokens with the largest k'_j · μ_c
        A_ij = Σ_{c: i, j ∈ S_c} softmax over {j ∈ S_c, j ≤ i} of q'_i · k'_j / (number of i's clusters + 0.01)

    LN has no scales, and scores are not divided by √d. A token of no cluster gets zeros. Which tokens are a cluster's
    reads later ones, causal or not: it `leaks`; while a text goes on, they are chosen anew of what there is.
    Centroids μ are moved by `learning`, not by gradients. With ``relative`` R, scores get ``q'_i · a_r`` and values
    ``b_r`` more, of r = rank_j − rank_i inside of the cluster, cut at ±R: the output is then not linear in v.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``.
    Cost: ``4 c w² max(d, e) + 2 m c d`` FLOPs a head. State: all keys and values.

    Args:
        heads, head_dim: of its calls. clusters: c, √n in the paper. window: w, None for the tokens over c. decay: of
            the centroids' moving average. beta: weight of the loss that draws keys to their centroids. relative: R, 0
            for no relative positions. shared: the layer around it takes the queries for keys too. value_dim: of its
            calls, None for head_dim.

    Raises:
        ValueError: no clusters, a window below one, R below zero; values of another size than relative ones.

    Paper: Roy et al., arXiv 2003.05997: shared queries and keys, half of the heads, the others local. While a text goes
    on, the authors' code too takes the w nearest of the tokens so far.
    """

    traits = Traits(cross=False, rows="at most one", sign="nonnegative", resumable=False, leaks=True, flops="at most")
    layer = LayerSpec(rotary=False)

    def __init__(
        self,
        heads: int,
        head_dim: int,
        clusters: int = 16,
        window: int | None = None,
        decay: float = 0.99,
        beta: float = 1e-4,
        relative: int = 0,
        shared: bool = False,
        value_dim: int | None = None,
    ) -> None:
        super().__init__()
        if relative < 0:
            raise wrong("relative", str(relative), "1 or more, or 0 for no relative positions")
        if clusters < 1 or (window is not None and window < 1):
            raise wrong("clusters, window", f"{clusters}, {window}", "at least 1 each")
        if window is not None:
            self.traits = replace(self.traits, time="linear")
        if shared:
            self.layer = replace(self.layer, projection="shared")
        self.relative, self.keys, self.values = relative, None, None
        if relative:
            self.traits, count = replace(self.traits, rows=None, sign=None, linear=False), 2 * relative + 1
            self.keys = nn.Parameter(torch.randn(count, head_dim) * head_dim**-0.5)
            self.values = nn.Parameter(torch.randn(count, value_dim or head_dim) * (value_dim or head_dim) ** -0.5)
        self.heads, self.head_dim, self.clusters, self.window = heads, head_dim, clusters, window
        self.decay, self.beta, self.learning = decay, beta, False
        self.loss: Tensor | None = None
        self.register_buffer("centroids", F.normalize(torch.randn(heads, clusters, head_dim), dim=2))

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        check_sizes(q, self.heads, self.head_dim)
        if self.values is not None and v is not None and v.shape[3] != self.values.shape[1]:
            raise wrong("v", f"{v.shape[3]} numbers a token", f"the {self.values.shape[1]} of value_dim")

    def count(self, tokens: int) -> int:
        """w of so many tokens."""
        return min(max(tokens // self.clusters, 1) if self.window is None else self.window, tokens)

    def members(self, k: Tensor) -> Tensor:
        """``(b, h, c, w)`` int64: the tokens of each cluster of one document, in order; k is normed."""
        centroids: Tensor = self.get_buffer("centroids").to(k.dtype)
        return best(centroids @ k.detach().mT, self.count(k.shape[2]))

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        n, m = q.shape[2], k.shape[2]
        q, k, a = normed(q), normed(repeat_heads(k, self.heads)), q.new_zeros(*q.shape[:3], m)
        for batch, queries, keys in alone.parts(layout, len(q), n, m, q.device):
            if len(queries):
                part = self.map(q[batch, :, queries], k[batch, :, keys], layout.causal)
                for row in range(*batch.indices(len(q))):
                    a[row, :, queries[:, None], keys] = part[row if batch == slice(None) else 0]
        return a

    def define(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        if self.values is None:
            return super().define(q, k, v, layout, **signals)
        self.check(q, k, v, layout, signals)
        n, m = q.shape[2], k.shape[2]
        q, k, v = normed(q), normed(repeat_heads(k, self.heads)), repeat_heads(v, self.heads)
        out = q.new_zeros(*q.shape[:3], v.shape[3])
        for batch, queries, keys in alone.parts(layout, len(q), n, m, q.device):
            if len(queries):
                a, apart = self.maps(q[batch, :, queries], k[batch, :, keys], layout.causal)
                part = a.sum(2) @ v[batch, :, keys]
                part = part + (a[..., None] * self.values.to(a.dtype)[apart]).sum((2, 4))
                out[batch, :, queries] = part
        return out

    def map(self, q: Tensor, k: Tensor, causal: bool) -> Tensor:
        """A of the last queries of one document."""
        return self.maps(q, k, causal)[0].sum(2)

    def maps(self, q: Tensor, k: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        """A of each cluster, ``(b, h, c, n, m)``, for the last queries of one document, and r of each pair, plus R."""
        n, m, index = q.shape[2], k.shape[2], self.members(k)
        inside = torch.zeros(*index.shape[:3], m + 1, dtype=torch.bool, device=q.device)
        inside = inside.scatter_(3, index.masked_fill(index < 0, m), True)[..., :m]
        seen = inside[..., m - n :, None] & inside[..., None, :]
        seen = seen.tril(m - n) if causal else seen
        rank, scores = inside.cumsum(3), (q @ k.mT)[:, :, None].expand_as(seen)
        apart = (rank[..., None, :] - rank[..., m - n :, None]).clamp(-self.relative, self.relative) + self.relative
        if self.keys is not None:
            table = (q @ self.keys.to(q.dtype).mT)[:, :, None].expand(-1, -1, self.clusters, -1, -1)
            scores = scores + table.gather(4, apart)
        count = inside[..., m - n :].sum(2)[:, :, None, :, None].to(q.dtype) + SHARE
        return masked_softmax(scores, seen) / count, apart

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        """Of A; with relative positions the values that they add to are not shown."""
        return self.weights(q, k, layout, **signals)[:, :, rows]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        n, m = q.shape[2], k.shape[2]
        wide = accumulate_dtype(q.dtype)
        q, k = normed(q).to(v.dtype), normed(k.to(wide))  # whose clusters are chosen before it is rounded
        if self.learning:
            self.learn(repeat_heads(k, self.heads), layout)
        out = q.new_zeros(*q.shape[:3], v.shape[3]) + sum(x[..., :0].sum().to(q.dtype) for x in (q, k, v))
        for batch, queries, keys in alone.parts(layout, len(q), n, m, q.device):
            if len(queries):
                own, values = k[batch, :, keys], v[batch, :, keys]
                part = self.among(own, values, q[batch, :, queries], layout.causal)
                places = (torch.arange(len(q))[batch, None, None], torch.arange(q.shape[1])[None, :, None], queries)
                out = out.index_put(tuple(x.to(q.device) for x in places), part)
        return out

    def among(self, k: Tensor, v: Tensor, q: Tensor, causal: bool) -> Tensor:
        """The output of the last queries of one document, cluster by cluster."""
        (n, m), (b, h) = (q.shape[2], k.shape[2]), q.shape[:2]
        k, v = repeat_heads(k, h), repeat_heads(v, h)
        index, k = self.members(k), k.to(q.dtype)
        w = index.shape[3]
        place, flat = index.flatten(1, 2).clamp(min=0), index.clamp(min=0).flatten(2)
        keys, values = (taken(x, flat.flatten(0, 1)).view(b, h * self.clusters, w, -1) for x in (k, v))
        at = (flat - (m - n)).clamp(min=0)
        queries = taken(q, at.flatten(0, 1)).view(b, h * self.clusters, w, -1)
        seen = (place >= 0)[:, :, None].expand(-1, -1, w, -1)
        seen = seen & (place[:, :, None] <= place[..., None]) if causal else seen
        if self.keys is None:
            piece = dense.Piece(slice(0, w), slice(0, w), mask=seen)
            part = dense.over(queries, keys, values, [piece], 1.0).out
        else:
            part = self.ranked(queries, keys, values, seen)
        mine = (flat >= m - n).to(part.dtype)[..., None]
        part = torch.cat([part.reshape(b, h, -1, v.shape[3]) * mine, mine], -1)
        rows, blank = flat_index(q, at.flatten(0, 1)), part.new_zeros(b * h * n, part.shape[3])
        total, count = blank.index_add(0, rows, part.flatten(0, 2)).view(b, h, n, -1).split([v.shape[3], 1], -1)
        return (total / (count + SHARE)).to(v.dtype)

    def ranked(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        """The output inside of clusters ``(b, h c, w, …)`` with relative positions."""
        assert self.keys is not None
        assert self.values is not None
        wide = accumulate_dtype(q.dtype)
        q, k, v = q.to(wide), k.to(wide), v.to(wide)
        place = torch.arange(q.shape[2], device=q.device)
        apart = ((place - place[:, None]).clamp(-self.relative, self.relative) + self.relative).expand_as(seen)
        scores = q @ k.mT + (q @ self.keys.to(wide).mT).gather(3, apart)
        a = masked_softmax(scores, seen)
        sums = a.new_zeros(*a.shape[:3], len(self.values)).scatter_add(3, apart, a)
        return a @ v + sums @ self.values.to(wide)

    def learn(self, k: Tensor, layout: Layout) -> None:
        """Moves centroids to the means of the keys nearest to them, and sets the loss that draws keys to theirs."""
        real = torch.ones(len(k), k.shape[2], dtype=torch.bool, device=k.device)
        real = real if layout.key_mask is None else layout.key_mask
        centroids: Tensor = self.get_buffer("centroids")
        with torch.no_grad():
            near = F.one_hot((centroids.to(k.dtype) @ k.mT).argmax(2), self.clusters).to(k.dtype)
            near = near * real[:, None, :, None]
            sums, counts = torch.einsum("bhmc,bhmd->hcd", near, k), near.sum((0, 2))[..., None]
            moved = self.decay * centroids + (1 - self.decay) * (sums / counts.clamp(min=1)).to(centroids.dtype)
            centroids.copy_(torch.where(counts > 0, moved, centroids))
        own = near @ centroids.to(k.dtype)
        apart = (k - own).square().mean(3) * real[:, None]
        self.loss = self.beta * apart.sum() / (real.sum() * k.shape[1]).clamp(min=1)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        w, c, m = self.count(shape.keys), self.clusters, shape.keys
        count = 2 * self.relative + 1 if self.relative else 0
        each = 4 * c * w * (w + count) * max(shape.head_dim, shape.values) + 2 * m * c * shape.head_dim
        return Cost(shape.batch * shape.heads * each, shape.io_bytes, shape.cache_bytes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        torch.manual_seed(0)
        return [
            Example("three clusters", cls(4, 5, 3), heads=4, kv_heads=2),
            Example("five of 7 tokens", cls(3, 5, 5, 7), heads=3, kv_heads=3),
            Example("relative positions", cls(2, 5, 3, 11, relative=4, value_dim=7), longest=97),
        ]


def normed(x: Tensor) -> Tensor:
    """Layer norm without scales."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON)


@contextmanager
def learning(model: nn.Module) -> Iterator[list[ContentRouting]]:
    """Centroids of a model move with every call inside; ``sum(x.loss for x in …)`` is to be added to the loss."""
    found = [module for module in model.modules() if isinstance(module, ContentRouting)]
    for module in found:
        module.learning = True
    try:
        yield found
    finally:
        for module in found:
            module.learning, module.loss = False, None
