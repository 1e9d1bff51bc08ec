"""The global branches of native sparse attention alone: compressed blocks, and the best of them in full."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.layout import Layout
from regard.core.mechanism import Example
from regard.mechanisms.sparse.nsa import NativeSparse


@published(
    "global_nsa",
    family="sparse",
    title="Optimizing Native Sparse Attention with Latent Attention and Local Global Alternating Strategies",
    arxiv="2511.00819",
    year=2025,
    aliases=("compressed_and_selected",),
    fidelity="abstract only",
    claim=Claim(
        "with all blocks selected and the gate at them it is softmax attention",
        cells="alternating.all_selected",
        holds="common.within(most=1e-9)",
    ),
)
class GlobalNative(NativeSparse):
    """Two of the three branches of `NativeSparse`, for layers between which others attend to a window.

        A_i = c_i C_i + s_i S_i

    C is softmax attention over the mean keys of the blocks that are complete at i, S that to the ``budget`` blocks
    which C pays most, in the mean of a group's heads, the own, the previous and the first always among them; c and s
    are the signals ``compressed`` and ``selected``.

    Args:
        block: keys in a block. budget: blocks in full for each query.

    Paper: Hu et al., arXiv 2511.00819, of which only the abstract was at hand; the branches are those of NSA.
    """

    signals = MappingProxyType({name: NativeSparse.signals[name] for name in ("compressed", "selected")})

    def __init__(self, block: int = 64, budget: int = 16) -> None:
        super().__init__(block, budget, 1)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        start, stop, _ = rows.indices(q.shape[2])
        some = slice(start, stop)
        first, second = (signals[of][:, :, some, None] * self.each(of, q, k, layout, some) for of in self.signals)
        return first + second

    def mixed(self, branch: Any, signals: dict[str, Tensor]) -> Tensor:
        first, second = (signals[of][..., None] * branch(of) for of in self.signals)
        return first + second

    def cost(self, shape: Shape, layout: Layout = Layout(True)) -> Cost:
        routed = self.selected_cost(shape, layout)
        more = 4 * shape.n * (shape.keys // self.router.block) * max(shape.head_dim, shape.values)
        return Cost(routed.flops + shape.batch * shape.heads * more, routed.bytes, routed.state_bytes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("blocks of 4, grouped", cls(4, 4), heads=4, kv_heads=2),
            Example("blocks of 33", cls(33, 3), heads=3, kv_heads=3),
        ]
