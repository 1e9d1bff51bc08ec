"""The convolutional block attention module, and its spatial half."""

from __future__ import annotations

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.featuremap.composed import Composed
from regard.featuremap.gate import Series


@published(
    "spatial",
    family="featuremap",
    kind="gate",
    title="CBAM: Convolutional Block Attention Module",
    arxiv="1807.06521",
    year=2018,
    fidelity="third-party code",
    claim=Claim(
        "a cell's factor depends on the 7 × 7 cells around it and no others",
        cells="featuremap.reaches(gate='spatial', long=7, wide=7)",
        holds="featuremap.is_the_cross",
    ),
)
class Spatial(Composed):
    """Cells are weighed by a convolution over the maximum and the mean of their channels: ``σ(norm(conv_k(max ‖
    mean)))``.

    Parameters: 2 k² + 2.

    Args:
        channels: c. kernel: k, odd. momentum: of the batch norm.

    Paper: Woo et al. (CBAM), arXiv 1807.06521.
    """

    def __init__(self, channels: int, kernel: int = 7, momentum: float = 0.01) -> None:
        super().__init__(channels, over="c", pool="z", mix=f"conv2d(kernel={kernel}, momentum={momentum})")

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("spatial", cls(7)), Sample("spatial(kernel=3)", cls(5, kernel=3))]


@published(
    "cbam",
    family="featuremap",
    kind="gate",
    title="CBAM: Convolutional Block Attention Module",
    arxiv="1807.06521",
    year=2018,
    fidelity="third-party code",
    claim=Claim(
        "weighing cells too costs 98 weights and a norm more a block than SE with the same bottleneck, whatever the "
        "channels",
        cells="featuremap.adds(gate='cbam(bias=True)')",
        holds="featuremap.is_beyond_se(more=100)",
    ),
)
class ConvolutionalBlockAttention(Series):
    """First the channels are weighed, by what two layers make of their maxima and means, then the cells (`Spatial`).

        c:  σ(m(max(x)) + m(mean(x))),   m(p) = W_2 relu(W_1 p)

    Parameters: 2 c h + 2 k² + 2, h = c / ratio.

    Args:
        channels: c. ratio: of the bottleneck. kernel: of the spatial half. bias: of the bottleneck's layers.

    Paper: Woo et al., arXiv 1807.06521.
    """

    def __init__(self, channels: int, ratio: float = 16, kernel: int = 7, bias: bool = False) -> None:
        channel = Composed(channels, pool="z", mix=f"mlp(ratio={ratio}, bias={bias})")
        super().__init__(channel, Spatial(channels, kernel))

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("cbam", cls(12, ratio=4)), Sample("cbam, bias", cls(12, 3, 3, True))]
