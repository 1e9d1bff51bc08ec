"""Efficient attention: softmax over the channels of queries and over the positions of keys, apart from each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, LayerSpec, Mechanism, Traits, accumulate_dtype, repeat_heads
from regard.kernels import packing


@published(
    "efficient",
    family="linear",
    row=101,
    title="Efficient Attention: Attention with Linear Complexities",
    arxiv="1812.01243",
    year=2018,
    aliases=("efficient_attention",),
    fidelity="authors' code",
    claim=(
        Claim("with scaling it is (Q Kᵀ / n) V", cells="long_texts.scaling", holds="common.within(most=1e-12)"),
        Claim(
            "with softmax the implied rows sum to one",
            cells="long_texts.rows_of_efficient",
            holds="common.within(most=1e-12)",
        ),
        Claim("memory is linear in n", cells="long_texts.memory", holds="long_texts.grows_evenly"),
        Claim(
            "in a segmentation network it raises the overlap",
            cells="vision.segmentation",
            holds="vision.raises_the_overlap",
        ),
    ),
)
class Efficient(Mechanism):
    """Keys and values are summed up in a small matrix first, which every query then reads.

        A = ρ_q(Q) ρ_k(K)ᵀ;   softmax: ρ_q over the channels of each query, ρ_k over the positions of each channel;
        scaling: ρ(X) = X / √m

    A is ``weights``; m counts the real keys of the sequence or document. Bidirectional.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: ``2 (n + m) d e`` FLOPs a head, memory O((n + m)(d + e)). A packed batch runs document by document.

    Args:
        normaliser: "softmax" or "scaling".

    Raises:
        ValueError: another normaliser.

    In a convolutional network: `blocks.spatial.NonLocal`.

    Paper: Shen et al., arXiv 1812.01243.
    """

    traits = Traits(causal=False, rows="one", sign="nonnegative", time="linear", equivariant=True)
    layer = LayerSpec(rotary=False)

    def __init__(self, normaliser: Literal["softmax", "scaling"] = "softmax"):
        super().__init__()
        if normaliser not in ("softmax", "scaling"):
            raise wrong("normaliser", repr(normaliser), "softmax or scaling")
        self.normaliser = normaliser
        if normaliser == "scaling":
            self.traits = replace(self.traits, rows=None, sign=None)

    def maps(self, q: Tensor, k: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """ρ_q(Q) and ρ_k(K) in the precision of sums, rows of padding zero."""
        wide = accumulate_dtype(q.dtype)
        q, k = q.to(wide), repeat_heads(k, q.shape[1]).to(wide)
        hidden = None if keys is None else ~keys[:, None, :, None]
        if self.normaliser == "scaling":
            count = k.shape[2] if keys is None else keys.sum(1)[:, None, None, None]
            scale = torch.as_tensor(count, device=k.device).clamp(min=1).to(wide).rsqrt()
            k = k if hidden is None else k.masked_fill(hidden, 0)
            return q * scale, k * scale
        k = k if hidden is None else k.masked_fill(hidden, -torch.inf)
        k = torch.softmax(k, dim=2)
        return torch.softmax(q, dim=3), k if hidden is None else k.masked_fill(hidden, 0)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        if layout.segments is None:
            left, right = self.maps(q, k, layout.key_mask)
            return (left @ right.mT).to(q.dtype)
        n, m = q.shape[2], k.shape[2]
        out = q.new_zeros(*q.shape[:3], m)
        for row, tokens in packing.documents(layout, q.shape[0], m, k.device):
            left, right = self.maps(q[row : row + 1], k[row : row + 1, :, tokens], None)
            own = tokens[tokens >= m - n] - (m - n)
            out[row, :, own[:, None], tokens] = (left[0, :, own] @ right[0].mT).to(q.dtype)
        return out

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)

        def run(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None) -> Tensor:
            left, right = self.maps(q, k, keys)
            return (left @ (right.mT @ repeat_heads(v, q.shape[1]).to(right.dtype))).to(q.dtype)

        return run(q, k, v, layout.key_mask) if layout.segments is None else packing.per_sequence(run, q, k, v, layout)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        if layout.segments is not None:
            return self.weights(q, k, layout)[:, :, rows]
        return self.weights(q[:, :, rows], k, layout)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        flops = 2 * shape.batch * shape.heads * (shape.n + shape.keys) * shape.head_dim * shape.values
        return Cost(flops, shape.io_bytes, 0)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("softmax", cls(), heads=3, kv_heads=3),
            Example("scaling, grouped", cls("scaling"), heads=4, kv_heads=2),
        ]
