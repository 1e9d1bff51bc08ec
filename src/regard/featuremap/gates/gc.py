"""The global context gate."""

from __future__ import annotations

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.featuremap.composed import Composed


@published(
    "gc",
    family="featuremap",
    kind="gate",
    title="GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond",
    arxiv="1904.11492",
    year=2019,
    fidelity="third-party code",
    aliases=("global_context",),
    claim=Claim(
        "one context for every cell that asks: a mean under an attention that sums to one, in whatever order "
        "the cells stand",
        cells="featuremap.contexts(gate='gc(ratio=4)')",
        holds="featuremap.is_one_mean",
    ),
)
class GlobalContext(Composed):
    """Channels are weighed by two layers over a mean under one attention, the same for every cell that asks.

        f = σ(W_2 relu(norm(W_1 Σ_p a_p x_p + b_1)) + b_2),   a = softmax over cells of w · x + b

    The variant of the paper that multiplies. Parameters: c + 1 for the attention, 2 c h + 3 h + c, h = c / ratio.

    Args:
        channels: c. ratio: of the bottleneck. eps: of its layer norm; timm has 1e-6.

    Paper: Cao et al., arXiv 1904.11492.
    """

    def __init__(self, channels: int, ratio: float = 8, eps: float = 1e-5) -> None:
        super().__init__(channels, pool="query", mix=f"mlp(ratio={ratio}, norm=layer, eps={eps})")

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("gc", cls(12, ratio=3))]
