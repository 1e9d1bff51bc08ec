"""PyramidKV: low layers keep more than high ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.policy import sampled, shared_out
from regard.policies.snapkv import Windowed


@published(
    "pyramidkv",
    family="cache",
    kind="policy",
    row=147,
    title="PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
    arxiv="2406.02069",
    year=2024,
    fidelity="hand values",
    aliases=("pyramid",),
    claim=Claim(
        "a pyramid of budgets finds needles at least as well as the same budget for all layers",
        cells="policies.needle",
        holds="policies.no_worse(policy='pyramidkv', than='snapkv')",
    ),
)
@dataclass(frozen=True, kw_only=True)
class PyramidKV(Windowed):
    """SnapKV's choice, with budgets that fall from layer to layer by the same step and keep their sum.

        min = (C − w)/β,  max = 2(C − w) − min, at most n − w;   layer l keeps w + max − l (max − min)/(L − 1)
        all layers C, where n < 2(C − w)

    Symbols: C the budget of a kv head on average, n the prompt's tokens, L layers. Shapes: as `core.policy.View`.
    Cost: that of SnapKV.

    Args:
        beta: β, how steep. window: w, whose keys are always kept. kernel, pooling, sinks, recent, every: as for SnapKV.

    Raises:
        ValueError: β below one.

    Paper: Cai et al., arXiv 2406.02069: β 20, w 8 to 64. In their code steps are rounded down, so that budgets do not
    add up; here what is left is given out by largest remainders. Theirs are budgets of each query head's own cache.
    """

    beta: float = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 1:
            raise wrong("beta", str(self.beta), "at least 1")

    def budget(self, size: int, layer: int, layers: int, n: int) -> int:
        own = size - self.forced
        if n < 2 * own or layers == 1 or own <= 0:
            return size
        low = own / self.beta
        high = 2 * own - low
        if high > n - self.forced:
            high = n - self.forced
            low = 2 * own - high
        steps = [high - index * (high - low) / (layers - 1) for index in range(layers)]
        return self.forced + shared_out(own * layers, steps)[layer]

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return sampled(cls(window=2, kernel=3, beta=4, sinks=1))
