"""Neural attention: a small network scores each pair."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, check_sizes
from regard.mechanisms.scored.parts.scores import Network
from regard.mechanisms.scored.parts.tile_scores import OneHiddenLayer, TwoHiddenLayers


@published(
    "neural",
    family="scored",
    row=182,
    title="Neural Attention: A Novel Mechanism for Enhanced Expressive Power in Transformer Models",
    arxiv="2502.17206",
    year=2025,
    aliases=("neural_attention",),
    fidelity="authors' code",
    claim=(
        Claim(
            "the tiled, factored form equals a network on the concatenated pair",
            cells="scored.factored_pair",
            holds="common.within(most=1e-10)",
        ),
        Claim(
            "it selects keys by a relation of bits that a dot-product head cannot",
            cells="scored.pointer",
            holds="scored.selects_by_a_relation",
        ),
    ),
)
class NeuralAttention(Network):
    """Softmax attention whose scores come from a network of one hidden layer on each pair of query and key, or of two.

        A = softmax_j(w_h · relu(W_h [q_i; k_j] + b_h)),   computed as relu((Q_h q_i) + (K_h k_j + b_h))
        A = softmax_j(w_h · relu(V_h relu(W_h [q_i; k_j] + b_h) + c_h))     with a second one

    Q is ``query``, K ``key``, b ``bias``, w ``out``, V ``middle``, c ``middle_bias``. Before it, queries and keys may
    be projected, by an affine map each that the heads share. Memory is that of a tile times the hidden size, whatever
    the length.

    Args:
        heads, head_dim: of q. hidden: units of each head's network, D. second: of the second hidden layer, 0 for none.
            projected: coordinates of the projected queries and keys, 0 for q and k as they are. shared: one network for
            all heads.

    Raises:
        ValueError: a size below one, or q of other sizes.

    Paper: DiGiugno and Mahmood, arXiv 2502.17206. Its code has two hidden layers, the second half as wide as the first,
    which is as wide as what it projects queries and keys to, all shared by the heads; w's constant, which no softmax
    sees, is left out.
    """

    def __init__(
        self,
        heads: int = 4,
        head_dim: int = 64,
        hidden: int = 8,
        second: int = 0,
        projected: int = 0,
        shared: bool = False,
    ) -> None:
        if min(second, projected) < 0:
            raise wrong("second, projected", f"{second}, {projected}", "at least 1 each, or 0 for none")
        super().__init__(1 if shared else heads, projected or head_dim, hidden)
        self.sizes = heads, head_dim
        self.projections = nn.ModuleDict()
        if projected:
            self.projections.update({name: nn.Linear(head_dim, projected) for name in ("q", "k")})
        count = self.out.shape[0]
        self.middle = self.middle_bias = None
        if second:
            self.middle = nn.Parameter(torch.randn(count, hidden, second) * hidden**-0.5)
            self.middle_bias = nn.Parameter(torch.zeros(count, second))
            self.out = nn.Parameter(torch.randn(count, second) * second**-0.5)

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> OneHiddenLayer | TwoHiddenLayers:
        if self.middle is None or self.middle_bias is None:
            return super().score(q, m, layout, **signals)
        return TwoHiddenLayers(self.out, self.middle, self.middle_bias)

    def prepared(self, q: Tensor, k: Tensor, **signals: Tensor) -> tuple[Tensor, Tensor]:
        for name, linear in self.projections.items():
            x = q if name == "q" else k
            weight, bias = linear.get_parameter("weight"), linear.get_parameter("bias")
            x = x @ weight.mT.to(x.dtype) + bias.to(x.dtype)
            q, k = (x, k) if name == "q" else (q, x)
        return super().prepared(q, k, **signals)

    def check(self, q, k, v, layout, signals) -> None:
        super(Network, self).check(q, k, v, layout, signals)
        check_sizes(q, *self.sizes)

    def products(self, shape: Shape) -> tuple[int, int]:
        hidden, before, last = self.bias.shape[1], shape.n + shape.keys, self.out.shape[1]
        sizes = (self.query.shape[1] * (shape.head_dim if self.projections else 0), self.query.shape[1] * hidden)
        return last + (0 if self.middle is None else hidden * last), before * sum(sizes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        torch.manual_seed(0)
        d = Example.head_dim
        return [
            Example("3 units", cls(3, d, 3), heads=3, kv_heads=3),
            Example("4 units, grouped", cls(4, d, 4), heads=4, kv_heads=2),
            Example("two hidden layers", cls(4, d, 4, 2, 3, True), heads=4, kv_heads=2),
        ]
