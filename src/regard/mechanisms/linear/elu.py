"""Linear attention with the feature map elu + 1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import elu

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.layout import Layout
from regard.core.mechanism import Example, Host, Traits, repeat_heads
from regard.kernels import alone
from regard.mechanisms.linear.base import EPSILON, Recurrent


@published(
    "linear",
    family="linear",
    title="Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
    arxiv="2006.16236",
    year=2020,
    aliases=("linear_attention", "elu"),
    claim=Claim(
        text="chunked, recurrent and quadratic forms are equal; rows sum to one; one decoding step costs the same "
        "after any number of tokens",
        status="works",
        figure="equal to 1e-9 in float64; a decoding step after 65,536 tokens costs what one after 1,024 does",
        command="pytest tests/claims/test_recurrent.py",
    ),
)
class Linear(Recurrent):
    """Each query takes the mean of earlier values, weighted by products of positive features.

        A_ij = φ(q_i) · φ(k_j) / Σ_{j' ≤ i} φ(q_i) · φ(k_j'),   φ(x) = elu(x) + 1

    A is ``weights``; two-sided, the sum runs over all keys. See `Recurrent` for shapes and state, which has one column
    more for the sums; a packed two-sided batch runs document by document.

    Paper: Katharopoulos et al., arXiv 2006.16236.
    """

    traits = Traits(time="linear", state="constant", rows="one", sign="nonnegative")
    host = Host()
    normalised = True

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return elu(q) + 1, elu(k) + 1

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor) -> Tensor:
        if layout.causal:
            return super().weights(q, k, layout, **signals)
        self.check(q, k, None, layout, signals)
        left, right = self.features(q, repeat_heads(k, q.shape[1]))
        products = (left @ right.mT).masked_fill(~layout.allowed(q.shape[2], k.shape[2], q.device), 0)
        return products / products.sum(-1, keepdim=True).clamp(min=EPSILON)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor
    ) -> Tensor:
        if layout.causal:
            return super().forward(q, k, v, layout, **signals)
        self.check(q, k, v, layout, signals)

        def run(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None) -> Tensor:
            x = self.prepared(q, k, v, keys, None, signals)
            return self.finish(x.q @ (x.k.mT @ x.v), q.dtype)

        return run(q, k, v, layout.keys) if layout.segments is None else alone.each(run, q, k, v, layout)

    def cost(self, shape: Shape, layout: Layout = Layout(causal=True)) -> Cost:
        if layout.causal:
            return super().cost(shape, layout)
        heads, d, e = shape.batch * shape.heads, shape.head_dim, shape.values + 1
        return Cost(2 * heads * (shape.n + shape.keys) * d * e, shape.io_bytes, heads * d * e * max(shape.itemsize, 4))

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("plain", cls(), heads=3, kv_heads=3), Example("grouped", cls(), heads=4, kv_heads=2)]
