"""Efficient channel attention."""

from __future__ import annotations

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.featuremap.composed import Composed


@published(
    "eca",
    family="featuremap",
    kind="gate",
    row=183,
    title="ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks",
    arxiv="1910.03151",
    year=2019,
    fidelity="third-party code",
    aliases=("efficient_channel_attention",),
    claim=(
        Claim(
            "in the 16 blocks of ResNet-50 it has the paper's 80 weights, under 0.01% of SE's",
            cells="featuremap.eca_on_resnet50",
            holds="featuremap.is_eighty",
        ),
        Claim(
            "without a bottleneck the factors depend on all of the channels' means independently",
            cells="featuremap.ranks",
            holds="featuremap.keeps_all_channels(gate='eca')",
        ),
    ),
)
class EfficientChannelAttention(Composed):
    """Channels are weighed by a convolution along their means, in the order in which they stand:
    ``σ(conv_k(mean(x)))``.

    Parameters: k.

    Args:
        channels: c. kernel: k, odd; None for the odd number at or above ⌊(log2 c + 1) / 2⌋, at least 3.

    Paper: Wang et al., arXiv 1910.03151.
    """

    def __init__(self, channels: int, kernel: int | None = None) -> None:
        super().__init__(channels, mix=f"conv1d(kernel={kernel})")

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("eca", cls(12)), Sample("eca(kernel=5)", cls(7, kernel=5))]
