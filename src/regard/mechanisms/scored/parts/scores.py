"""How well queries and keys match, to be put under any bias and normaliser."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.core.cost import Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import LayerSpec, Traits, accumulate_dtype, check_sizes
from regard.kernels.tiled import Dot
from regard.mechanisms.scored.base import Scored
from regard.mechanisms.scored.parts.tile_scores import Apart, OneHiddenLayer, Phase


class DotProduct(Scored):
    """``s_ij = scale q_i · k_j``; the ``scale`` is 1/√d if None."""

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.scale = scale

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Dot:
        return Dot(q.shape[-1] ** -0.5 if self.scale is None else self.scale)


class Distance(DotProduct):
    """``s_ij = −scale |q_i − k_j|²``; the ``scale`` is 1/√d if None.

    Paper: Kim, Papamakarios and Mnih, arXiv 2006.04710, where queries and keys share their matrix.
    """

    def __init__(self, scale: float | None = None) -> None:
        super().__init__(scale)
        if scale is not None and not scale > 0:
            raise wrong("scale", str(scale), "above zero: near keys score high")

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Apart:
        return Apart(super().score(q, m, layout, **signals).scale)


class Additive(Scored):
    """``s_ij = w_h · tanh(q_i + k_j)``, with w ``out``; memory of a tile times d.

    Args:
        heads, head_dim: of q.

    Paper: Bahdanau et al., arXiv 1409.0473.
    """

    def __init__(self, heads: int = 4, head_dim: int = 64) -> None:
        super().__init__()
        if min(heads, head_dim) < 1:
            raise wrong("heads, head_dim", f"{heads}, {head_dim}", "at least 1 each")
        self.out = nn.Parameter(torch.randn(heads, head_dim) * head_dim**-0.5)

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> OneHiddenLayer:
        return OneHiddenLayer(self.out, torch.tanh)

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        check_sizes(q, *self.out.shape)


class Network(Scored):
    """``s_ij = w_h · relu(W_h [q_i; k_j] + b_h)``, computed as ``relu((Q_h q_i) + (K_h k_j + b_h))``.

    Args:
        heads, head_dim: of q. hidden: units of each head's network, D.

    Paper: DiGiugno and Mahmood, arXiv 2502.17206.
    """

    def __init__(self, heads: int = 4, head_dim: int = 64, hidden: int = 8) -> None:
        super().__init__()
        if min(heads, head_dim, hidden) < 1:
            raise wrong("heads, head_dim, hidden", f"{heads}, {head_dim}, {hidden}", "at least 1 each")
        self.query = nn.Parameter(torch.randn(heads, head_dim, hidden) * head_dim**-0.5)
        self.key = nn.Parameter(torch.randn(heads, head_dim, hidden) * head_dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(heads, hidden))
        self.out = nn.Parameter(torch.randn(heads, hidden) * hidden**-0.5)

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> OneHiddenLayer:
        return OneHiddenLayer(self.out)

    def prepared(self, q: Tensor, k: Tensor, **signals: Tensor) -> tuple[Tensor, Tensor]:
        dtype = q.dtype
        return q @ self.query.to(dtype), k @ self.key.to(dtype) + self.bias.to(dtype)[:, None]

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        check_sizes(q, *self.query.shape[:2])

    def products(self, shape: Shape) -> tuple[int, int]:
        hidden = self.out.shape[1]
        return hidden, (shape.n + shape.keys) * shape.head_dim * hidden


class Bilinear(Scored):
    """``s_ij = q_i · W_h k_j``: "general", with W ``map``, the identity over √d and a little noise at first.

    Args:
        heads, head_dim: of q.

    Paper: Luong, Pham and Manning, arXiv 1508.04025.
    """

    def __init__(self, heads: int = 4, head_dim: int = 64) -> None:
        super().__init__()
        if min(heads, head_dim) < 1:
            raise wrong("heads, head_dim", f"{heads}, {head_dim}", "at least 1 each")
        noise = torch.randn(heads, head_dim, head_dim) * 0.1 / head_dim
        self.map = nn.Parameter(torch.eye(head_dim) * head_dim**-0.5 + noise)

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Dot:
        return Dot(1.0)

    def prepared(self, q: Tensor, k: Tensor, **signals: Tensor) -> tuple[Tensor, Tensor]:
        wide = accumulate_dtype(q.dtype)
        return q.to(wide) @ self.map.to(wide), k.to(wide)

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        check_sizes(q, *self.map.shape[:2])

    def products(self, shape: Shape) -> tuple[int, int]:
        return shape.head_dim, shape.n * shape.head_dim**2


class Trilinear(Scored):
    """``s_ij = w_h · [q_i; k_j; q_i ⊙ k_j]``, as two biases and one product: ``u·q_i + v·k_j + (c ⊙ q_i)·k_j``.

    No tensor has a number for each pair and channel. u is `query`, v `key`, c `both`.

    Args:
        heads, head_dim: of q.

    Paper: Seo et al., arXiv 1611.01603.
    """

    def __init__(self, heads: int = 4, head_dim: int = 64) -> None:
        super().__init__()
        if min(heads, head_dim) < 1:
            raise wrong("heads, head_dim", f"{heads}, {head_dim}", "at least 1 each")
        self.query, self.key, self.both = (
            nn.Parameter(torch.randn(heads, head_dim) * head_dim**-0.5) for _ in range(3)
        )

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Dot:
        return Dot(1.0)

    def prepared(self, q: Tensor, k: Tensor, **signals: Tensor) -> tuple[Tensor, Tensor]:
        wide = accumulate_dtype(q.dtype)
        q, k = q.to(wide), k.to(wide)
        own, other = ((x * w.to(wide)[:, None]).sum(-1, keepdim=True) for x, w in ((q, self.query), (k, self.key)))
        left = torch.cat([q * self.both.to(wide)[:, None], own, torch.ones_like(own)], -1)
        return left, torch.cat([k, torch.ones_like(other), other], -1)

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        check_sizes(q, *self.query.shape)

    def products(self, shape: Shape) -> tuple[int, int]:
        return shape.head_dim + 2, 0


class TokenPhase(Scored):
    """``s_ij = (q_A·k_A / √D_A) cos(2π |p_i − p_j|^α q_P·k_P / √D_P)``, q = [q_A, q_P].

    Args:
        share: of the dimensions that is the amplitude, D_A / D. power: α.

    Paper: Wang et al., arXiv 2509.12635.
    """

    traits = Traits(masked=True, biased=True, rows="one", sign="nonnegative", cross=False)
    layer = LayerSpec(rotary=False)

    def __init__(self, share: float = 0.5, power: float = 0.1) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise wrong("share", str(share), "above 0 and below 1")
        if not power > 0:
            raise wrong("power", str(power), "above zero")
        self.share, self.power = share, power

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Phase:
        d = q.shape[-1]
        if d < 2:
            raise wrong("q", f"head_dim {d}", "at least 2: an amplitude and a phase")
        split = min(max(round(self.share * d), 1), d - 1)
        return Phase(split, self.power, *self.places(q, m, layout))


SCORES = {
    **{"dot": DotProduct, "additive": Additive, "network": Network, "distance": Distance, "phase": TokenPhase},
    **{"bilinear": Bilinear, "trilinear": Trilinear},
}
