"""Attention of higher order: queries and keys that are themselves read from the sequence by attention."""

from __future__ import annotations

from collections.abc import Sequence

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.sizes import Sizes
from regard.projections.base import Grouped


@published(
    "nexus",
    family="scored",
    kind="projection",
    row=307,
    title="Nexus: Higher-Order Attention Mechanisms in Transformers",
    arxiv="2512.03377",
    year=2025,
    aliases=("higher_order_attention", "hon"),
    fidelity="hand values",
    claim=(
        Claim(
            "order 1 is multi-head attention; no order has more parameters",
            cells="nexus.first_order",
            holds="nexus.is_multi_head",
        ),
        Claim(
            "one layer of order 2 looks up two hops, one of order 1 cannot",
            cells="nexus.two_hops",
            holds="nexus.looks_up",
        ),
    ),
)
class Nexus(Grouped):
    """Grouped projections whose queries and keys are refined by attentions of the same parameters.

        q^1 = x W^Q,  k^1 = x W^K,  v = x W^V;   A_t = A(q^t, k^t)
        q^{t+1} = A_t q^1,   k^{t+1} = A_t k^1,   o = A_m v

    m is ``order``, A the layer's mechanism, causal where that is. Queries and keys are turned by the positions of their
    own tokens before each A; what A_t takes as values is not turned.

    Parameters: those of `Grouped`. Cost: m attentions, of which m − 1 have values of size 2 d. Cache: their keys and
    values too, 3 d for each token, head and order above one.

    Args:
        order: m, at least 1.

    Raises:
        ValueError: ``order`` below one; fewer key heads than heads above order 1.

    Paper: Chen et al., arXiv 2512.03377; from its abstract, which leaves open what the nested attentions take as
    values: with v for both, queries and keys would be equal and scores symmetric.
    """

    def __init__(self, sizes: Sizes, order: int = 2) -> None:
        super().__init__(sizes)
        if order < 1:
            raise wrong("order", str(order), "at least 1")
        if order > 1 and sizes.kv_heads != sizes.heads:
            raise wrong("kv_heads", str(sizes.kv_heads), f"the {sizes.heads} heads: each refines keys of its own")
        self.order = order

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        sizes = Sizes(13, 3, 3, 6, 7)
        first = cls(sizes, order=1)
        plain = Grouped(sizes).same_as(first)
        return [Sample("order 1", first, {"equals": plain}), Sample("order 3", cls(sizes, order=3))]

    @property
    def cached_numbers(self) -> int:
        return super().cached_numbers + (self.order - 1) * self.heads * 3 * self.head_dim
