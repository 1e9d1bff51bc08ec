"""The channel attention of partial attention networks."""

from __future__ import annotations

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.featuremap.composed import Composed


@published(
    "pat_channel",
    family="featuremap",
    kind="gate",
    row=100,
    title="Partial Convolution Meets Visual Attention",
    year=2025,
    fidelity="authors' code",
    claim=Claim(
        "its factors tell maps apart whose means are equal and whose deviations are not, which SE's do not",
        cells="featuremap.spread",
        holds="featuremap.tells_deviations",
    ),
)
class PartialChannelAttention(Composed):
    """Channels are weighed by one matrix over their means and deviations: ``hard σ(norm(W [mean(x), std(x)]))``.

    In the network, `patnet`, it weighs the channels that the partial convolution leaves as they are.
    Parameters: 2 c² + 2 c.

    Args:
        channels: c.

    Paper: Partial Convolution Meets Visual Attention (PATNet). The authors take the deviation of a sample, which a
    single cell does not have.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, pool="deviation", mix="dense(bias=False, norm=True)", squash="hard_sigmoid")

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("pat_channel", cls(7))]
