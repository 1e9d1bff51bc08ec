"""Sigmoid attention: each weight stands alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits, repeat_heads
from regard.kernels import tiled
from regard.mechanisms.cached import Cached
from regard.mechanisms.scored.parts.normalisers import counts


@published(
    "sigmoid",
    family="scored",
    row=350,
    title="Theory, Analysis, and Best Practices for Sigmoid Self-Attention",
    arxiv="2409.04431",
    year=2024,
    fidelity="authors' code",
    claim=(
        Claim(
            "with b = -log n the norm of the output is independent of n, with b = 0 it grows with n",
            cells="sigmoid.norms",
            holds="sigmoid.independent_of_the_length",
        ),
        Claim("no row statistic is kept for the backward pass", cells="sigmoid.kept", holds="sigmoid.keeps_none"),
        Claim(
            "a small language model's loss is within 1% of softmax's",
            cells="small_lm.tuned(layers='sigmoid*2')",
            holds="small_lm.tuned_loss_at_most(ratio=1.01)",
        ),
        Claim(
            "with a norm for each head a small language model's loss is within 1% of softmax's",
            cells="small_lm.tuned(layers='composed(normaliser=sigmoid, norm=True)*2')",
            holds="small_lm.tuned_loss_at_most(ratio=1.01)",
        ),
    ),
)
class Sigmoid(Cached):
    """Each query weighs each key by the sigmoid of their product, whatever the other keys are.

        A_ij = 1 / (1 + exp(-(q_i · k_j / sqrt(d) + b_i))),   b_i = -log (number of keys that i may see)

    A is ``weights``; b is ``bias``. Nothing is summed over a row, so nothing need be kept of it between the passes.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: 2 (d + e) FLOPs for each score of the tiles (causality skips whole tiles). State: all keys and values.

    Args:
        bias: b for every query, such as ``-log`` of the length in training; None for b_i above.

    Paper: Ramapuram et al., arXiv 2409.04431. There b is one number for all rows, -log n of the training length;
    b_i is that number in bidirectional attention, and in causal attention makes decoding equal to one call at any
    length.
    """

    traits = Traits(masked=True, sign="nonnegative", equivariant=True)

    def __init__(self, bias: float | None = None):
        super().__init__()
        self.bias = bias

    def biases(self, n: int, m: int, layout: Layout, like: Tensor) -> float | Tensor:
        """``b_i``: ``(b or 1, h or 1, n)``, or the one number."""
        if self.bias is not None:
            return self.bias
        return -counts(n, m, layout, like).log()

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        n, m = q.shape[2], k.shape[2]
        bias = self.biases(n, m, layout, q)
        scores = q @ repeat_heads(k, q.shape[1]).mT * q.shape[-1] ** -0.5
        scores = scores + (bias[..., None] if isinstance(bias, Tensor) else bias)
        return torch.sigmoid(scores).masked_fill(~layout.allowed(n, m, q.device), 0).to(q.dtype)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        bias = self.biases(q.shape[2], k.shape[2], layout, q)
        return tiled.attend(q, k, v, layout, normaliser=tiled.Sigmoid(bias))

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        cells = tiled.cells(shape.n, shape.keys, layout.causal)
        flops = 2 * shape.batch * shape.heads * cells * (shape.head_dim + shape.values)
        state = shape.cache_bytes
        return Cost(flops, shape.io_bytes, state)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("b = -log n", cls(), heads=3, kv_heads=3),
            Example("b = -2, grouped", cls(bias=-2.0), heads=4, kv_heads=2),
        ]
