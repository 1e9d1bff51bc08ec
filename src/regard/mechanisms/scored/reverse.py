"""Reversed attention: each token sends itself to others, which receive what is sent to them."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.layout import Layout
from regard.core.mechanism import Example, Mechanism, Signal, Traits, accumulate_dtype, repeat_heads


@published(
    "reversed",
    family="vit",
    row=114,
    title="Visual Dependency Transformers: Dependency Tree Emerges from Reversed Attention",
    arxiv="2304.03282",
    year=2023,
    aliases=("reversed_attention",),
    fidelity="abstract only",
    claim=Claim(
        "what a token sends sums to its choice of the head times its message, whatever it is sent to",
        cells="stages.columns",
        holds="common.within(most=1e-12)",
    ),
)
class Reversed(Mechanism):
    """Attention whose columns are shares: a token chooses whom it sends itself to, not whom it reads.

        A_ij = send_hj · exp(s_ij) / Σ_i' exp(s_i'j),   s_ij = scale q_i · k_j

    The softmax runs over the queries i that may receive from j. The signal ``send (b, h, m)`` is p_jh m_j, the token's
    choice of this head times how much of a message it has to give: columns sum to it, rows to anything.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: ``2 n m (d + e)`` FLOPs a head; memory n m for each head. Bidirectional only: what a token sends depends on
    all that may receive.

    Args:
        scale: None for ``1 / sqrt(d)``.

    Paper: Ding et al. (DependencyViT), arXiv 2304.03282, where the tokens that send are queries and parents keys; here
    rows are those that receive, as everywhere. The network with its choice of heads, messages, tree and pruning is
    `dependency_vit`.
    """

    signals = MappingProxyType({"send": Signal("how much a token sends in all in a head", low=0, high=1)})
    traits = Traits(causal=False, sign="nonnegative")

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.scale = scale

    def support(
        self, n: int, m: int, layout: Layout, device: torch.device | str = "cpu", rows: slice | None = None
    ) -> Tensor:
        return layout.among_tokens(n, m, device, rows)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        scores = q @ repeat_heads(k, q.shape[1]).mT * scale
        seen = self.support(q.shape[2], k.shape[2], layout, q.device)
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        shares = torch.softmax(scores, dim=-2) if q.shape[2] else scores
        return shares.masked_fill(~seen, 0) * signals["send"][:, :, None].to(scores.dtype)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        return self.weights(q, k, layout, **signals)[:, :, rows]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        wide = accumulate_dtype(q.dtype)
        given = {name: signal.to(wide) for name, signal in signals.items()}
        a = self.weights(q.to(wide), k.to(wide), layout, **given)
        return (a @ repeat_heads(v, q.shape[1]).to(wide)).to(q.dtype)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        flops = 2 * shape.batch * shape.heads * shape.n * shape.keys * (shape.head_dim + shape.values)
        return Cost(flops, shape.io_bytes, 0)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("plain", cls(), heads=3, kv_heads=3), Example("grouped", cls(0.7), heads=4, kv_heads=2)]
