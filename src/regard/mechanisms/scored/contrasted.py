"""Two softmax maps over halves of the coordinates, one less a share of the other."""

from __future__ import annotations

from torch import Tensor

from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Traits, masked_softmax, raised, repeat_heads
from regard.kernels import dense
from regard.mechanisms.cached import Cached


class Contrasted(Cached):
    """The base of differences of two softmax attentions, each over half of the coordinates of queries and keys.

        A = softmax(q₁ k₁ᵀ / √(d/2)) − λ softmax(q₂ k₂ᵀ / √(d/2))

    q₁, q₂ are the halves of q's coordinates, k₁ and k₂ those of k's. A subclass gives λ by `share`.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h; d is even.
    Cost: ``8 n m max(d/2, e)`` FLOPs a head as counted, O(n + m) memory. State: all keys and values.

    Args:
        head_dim: d.

    Raises:
        ValueError: an odd head_dim, or q of another.
    """

    traits = Traits(masked=True, biased=True, equivariant=True)

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        if head_dim < 2 or head_dim % 2:
            raise wrong("head_dim", str(head_dim), "an even number, which has halves")
        self.head_dim = head_dim

    def share(self, like: Tensor) -> Tensor:
        """λ, in the precision of ``like``."""
        raise NotImplementedError

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        seen, scale = layout.allowed(q.shape[2], k.shape[2], q.device), (q.shape[3] // 2) ** -0.5
        pairs = zip(q.chunk(2, 3), repeat_heads(k, q.shape[1]).chunk(2, 3), strict=True)
        first, second = (masked_softmax(raised(scale * x @ y.mT, layout), seen) for x, y in pairs)
        return first - self.share(q) * second

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        first, second = (dense.attend(x, y, v, layout) for x, y in zip(q.chunk(2, 3), k.chunk(2, 3), strict=True))
        return first - self.share(q) * second

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        if q.shape[3] != self.head_dim:
            raise wrong("q", f"head_dim {q.shape[3]}", f"{self.head_dim}")

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        pairs = shape.batch * shape.heads * shape.n * shape.keys
        return Cost(8 * pairs * max(shape.head_dim // 2, shape.values), shape.io_bytes, shape.cache_bytes)
