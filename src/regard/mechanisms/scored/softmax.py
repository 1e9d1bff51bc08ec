"""Softmax attention, with grouped heads, learned sinks and capped scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits, masked_softmax, repeat_heads
from regard.kernels import dense, tiled
from regard.mechanisms.cached import Cached


@published(
    "softmax",
    family="scored",
    title="Attention Is All You Need",
    arxiv="1706.03762",
    year=2017,
    aliases=("mha", "attention", "scaled_dot_product", "mqa", "gqa"),
    fidelity="third-party code",
    claim=(
        Claim("equals the textbook formula", cells="scored.by_hand", holds="common.within(most=1e-6)"),
        Claim("one kv head equals repeated heads", cells="scored.repeated", holds="common.within(most=1e-6)"),
        Claim("a learned sink takes its share of every row", cells="scored.sink", holds="scored.takes_its_share"),
    ),
)
class Softmax(Cached):
    """Each query takes the mean of the values, weighted by the softmax of its dot products with the keys.

        A_ij = exp(s_ij) / (exp(sink_h) + Σ_j exp(s_ij)),   s = c tanh(x / c),   x = scale q_i · k_j

    A is ``weights``; c is ``softcap`` (None: s = x); ``sink`` is a learned logit for each head that has no value
    (None: its term is absent), so that a row may sum to less than one.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: ``4 n m max(d, e)`` FLOPs a head as counted, O(n + m) memory; capped scores run in tiles, which skip what
    causality hides. State: all keys and values.

    Args:
        scale: of the products, None for ``1 / sqrt(d)``. softcap: c > 0, or None.
        sink_heads: number of query heads that get a learned sink logit each, from zero; None for no sinks.

    Raises:
        ValueError: ``softcap`` is not positive; or q has not ``sink_heads`` heads.

    Paper: Vaswani et al., arXiv 1706.03762; one or a few kv heads: Shazeer, 1911.02150, and Ainslie et al., 2305.13245.
    """

    traits = Traits(masked=True, rows="one", sign="nonnegative", equivariant=True)

    def __init__(self, scale: float | None = None, softcap: float | None = None, sink_heads: int | None = None):
        super().__init__()
        if softcap is not None and not softcap > 0:
            raise wrong("softcap", str(softcap), "a positive number, or None")
        self.scale, self.softcap = scale, softcap
        self.sink = None if sink_heads is None else nn.Parameter(torch.zeros(sink_heads))
        if self.sink is not None:
            self.traits = replace(self.traits, rows="at most one")

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        allowed = layout.allowed(q.shape[2], k.shape[2], q.device)
        scores = q @ repeat_heads(k, q.shape[1]).mT * self.score(q).scale
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        return masked_softmax(scores, allowed, self.sink)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        if self.softcap is None:
            return dense.attend(q, k, v, layout, self.scale, self.sink)
        return tiled.attend(q, k, v, layout, self.score(q), tiled.Softmax(self.sink))

    def score(self, q: Tensor) -> tiled.Dot:
        """The score as the kernels take it."""
        return tiled.Dot(q.shape[-1] ** -0.5 if self.scale is None else self.scale, self.softcap)

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        if self.sink is not None and q.shape[1] != self.sink.shape[0]:
            raise wrong("q", f"{q.shape[1]} heads", f"{self.sink.shape[0]}, the number of sinks")

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        heads, n, m, d, e = shape.batch * shape.heads, shape.n, shape.keys, shape.head_dim, shape.values
        flops = 4 * n * m * max(d, e) if self.softcap is None else 2 * tiled.cells(n, m, layout.causal) * (d + e)
        state = shape.cache_bytes
        return Cost(heads * flops, shape.io_bytes, state)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        sunk = cls(sink_heads=2, scale=0.3)
        sunk.load_state_dict({"sink": torch.tensor([0.5, -0.5])})
        return [
            Example("plain", cls(), heads=3, kv_heads=3),
            Example("grouped", cls(), heads=6, kv_heads=2),
            Example("softcap", cls(softcap=2.0)),
            Example("sink", sunk),
        ]
