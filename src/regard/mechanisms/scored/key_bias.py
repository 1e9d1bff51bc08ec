"""Softmax attention with a learned key of no value, which takes the mass that would else sink into a token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits, accumulate_dtype, masked_softmax, raised, repeat_heads
from regard.kernels import dense
from regard.mechanisms.cached import Cached


@published(
    "key_bias",
    family="scored",
    title="When Attention Sink Emerges in Language Models: An Empirical View",
    arxiv="2410.10781",
    year=2024,
    aliases=("k_bias",),
    fidelity="hand values",
    claim=Claim(
        "a learned key takes the mass that else the first token gets: Bigram-Backcopy, one head",
        cells="dormant.of_mechanism()",
        holds="dormant.is_absorbed",
    ),
)
class KeyBias(Cached):
    """Softmax attention in which every head has one more key, learned, whose value is zero.

        A_ij = exp(q_i · k_j / √d) / (exp(q_i · k*_h / √d) + Σ_j exp(q_i · k_j / √d))

    k* is ``key``. With k* = 0 this is the softmax with one added to its sum; a learned logit for each head, whatever
    the query, is `softmax(sink_heads=…)`. Positions are not turned into k*.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: that of softmax attention, and ``2 n d`` FLOPs a head. State: all keys and values.

    Args:
        heads, head_dim: of q.

    Raises:
        ValueError: q of other sizes.

    Paper: Gu et al., arXiv 2410.10781, "K biases": a learned key in front of all others, its value zero.
    """

    traits = Traits(masked=True, biased=True, rows="at most one", sign="nonnegative", equivariant=True)

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.zeros(heads, head_dim))

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        scores = raised(q @ repeat_heads(k, q.shape[1]).mT * q.shape[-1] ** -0.5, layout)
        every = torch.cat([self.bias(q)[..., None].to(scores.dtype), scores], -1)
        allowed = layout.allowed(q.shape[2], k.shape[2], q.device)
        allowed = allowed.expand(*allowed.shape[:-2], q.shape[2], k.shape[2])
        return masked_softmax(every, torch.nn.functional.pad(allowed, (1, 0), value=True))[..., 1:]

    def bias(self, q: Tensor) -> Tensor:
        """The score of k*, ``(b, h, n)``, in the precision that sums are kept in."""
        wide = accumulate_dtype(q.dtype)
        return torch.einsum("bhnd,hd->bhn", q.to(wide), self.key.to(wide)) * q.shape[-1] ** -0.5

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        part = dense.attend_lse(q, k, v, layout)
        return part.out * torch.sigmoid(part.lse - self.bias(q))[..., None].to(part.out.dtype)

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        if (q.shape[1], q.shape[3]) != self.key.shape:
            wanted = "{} heads of {}, those of the learned key".format(*self.key.shape)
            raise wrong("q", f"{q.shape[1]} heads of {q.shape[3]}", wanted)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        heads, n, m = shape.batch * shape.heads, shape.n, shape.keys
        flops = heads * (4 * n * m * max(shape.head_dim, shape.values) + 2 * n * shape.head_dim)
        return Cost(flops, shape.io_bytes, shape.cache_bytes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        found = []
        for label, heads, kv_heads in (("plain", 3, 3), ("grouped", 4, 2)):
            mechanism = cls(heads, Example.head_dim)
            nn.init.normal_(mechanism.key)
            found.append(Example(label, mechanism, heads=heads, kv_heads=kv_heads))
        return [*found, Example("zero", cls(2, Example.head_dim))]
