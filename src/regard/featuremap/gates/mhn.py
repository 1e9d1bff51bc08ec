"""Mixed high-order attention."""

from __future__ import annotations

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.featuremap.composed import Composed


@published(
    "high_order",
    family="featuremap",
    kind="gate",
    row=176,
    title="Mixed High-Order Attention Network for Person Re-Identification",
    arxiv="1908.05819",
    year=2019,
    fidelity="authors' code",
    aliases=("mhn",),
    claim=Claim(
        "the term of order r grows with the r-th power of the map, and at 512 channels there are as many "
        "weights as in the authors' modules",
        cells="featuremap.polynomials",
        holds="featuremap.is_of_its_order",
    ),
)
class HighOrder(Composed):
    """Every entry is weighed by polynomials of its cell, up to order R: ``Σ_r σ(W_r relu(Π_{i ≤ r} V_{r,i} x)) / R``.

    All V and W are matrices between c and c / 4 channels, without biases. Parameters: c (c / 4) (R (R + 1) / 2 + R).

    Args:
        channels: c. order: R.

    Paper: Chen et al., arXiv 1908.05819; the network of branches is `mhn_network`.
    """

    def __init__(self, channels: int, order: int = 3) -> None:
        super().__init__(channels, over="none", pool="none", mix=f"power(order={order})")

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample(f"high_order(order={order})", cls(12, order)) for order in (1, 3)]
