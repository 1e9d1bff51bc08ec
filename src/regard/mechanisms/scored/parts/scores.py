"""How well queries and keys match, to be put under any bias and normaliser."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import check_sizes
from regard.kernels.tiled import Dot
from regard.mechanisms.scored.base import Scored
from regard.mechanisms.scored.neural import Network, NeuralAttention
from regard.mechanisms.scored.parts.tile_scores import Apart
from regard.mechanisms.scored.tapa import Tapa


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

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Network:
        return Network(self.out, torch.tanh)

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        check_sizes(q, *self.out.shape)


SCORES = {"dot": DotProduct, "additive": Additive, "network": NeuralAttention, "distance": Distance, "phase": Tapa}
