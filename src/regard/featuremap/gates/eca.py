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
    claim=Claim(
        text="adds to the 16 blocks of ResNet-50 the weights of the paper, and equals timm's EcaModule with its "
        "weights",
        status="works",
        figure="kernels 3 at 64, 5 at 256 to 1,024, 7 at 2,048 channels: 86 weights; 80, the paper's, with k = 5 in "
        "all blocks or with the released 3, 5, 5, 7; under 0.01% of SE's; to 1e-6 of timm's",
        command="pytest tests/claims/test_feature_gates.py tests/unit/featuremap/test_reference.py",
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
