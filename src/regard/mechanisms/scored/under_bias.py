"""Softmax attention whose dot products get a bias of positions or signals."""

from __future__ import annotations

from torch import Tensor

from regard.core.layout import Layout
from regard.core.mechanism import LayerSpec
from regard.kernels.tiled import Dot
from regard.mechanisms.scored.base import Scored
from regard.mechanisms.scored.parts.biases import Bias
from regard.mechanisms.scored.parts.tile_scores import Biased


class UnderBias(Scored):
    """The base of softmax attention under a bias, which says where keys stand, so that rotary positions do not.

        A_ij = softmax_j(q_i · k_j / √d + b_ij)

    Args:
        bias: b; a subclass names its signals as its own.
    """

    layer = LayerSpec(rotary=False)

    def __init__(self, bias: Bias) -> None:
        super().__init__()
        self.bias = bias

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Biased:
        """The score for queries and keys that stand where the layout says."""
        return Biased(Dot(q.shape[-1] ** -0.5), self.bias.at(q, m, layout, **signals))
