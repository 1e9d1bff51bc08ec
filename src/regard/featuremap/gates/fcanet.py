"""Frequency channel attention."""

from __future__ import annotations

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.featuremap.composed import Composed


@published(
    "fcanet",
    family="featuremap",
    kind="gate",
    row=166,
    title="FcaNet: Frequency Channel Attention Networks",
    arxiv="2012.11879",
    year=2020,
    fidelity="authors' code",
    claim=(
        Claim(
            "with the frequency (0, 0) alone it is SE of S times the mean",
            cells="featuremap.lowest_frequency",
            holds="common.within(most=1e-6)",
        ),
        Claim(
            "it has as many parameters as SE",
            cells="featuremap.frequencies_cost",
            holds="common.at_most(figure=more, most=0, said='parameters beyond those of SE at 64 to 2,048 channels:')",
        ),
    ),
)
class FrequencyChannelAttention(Composed):
    """Squeeze and excitation of a cosine transform: each group of channels is pooled by another frequency.

        σ(W_2 relu(W_1 d)),   d_c = Σ_yx x_c,yx cos(π u_g (y + ½) / S) cos(π v_g (x + ½) / S) norm

    The frequencies (u_g, v_g) of the groups g are the best ones of a 7 × 7 map, times S // 7; see `Cosines`.
    Parameters: 2 c² / ratio.

    Args:
        channels: c, a multiple of ``frequencies``. size: S; in ResNet-50 the authors take 56, 28, 14 and 7 in its
            stages, the sizes of the maps at 224 pixels. ratio: of the bottleneck.

    Paper: Qin et al., arXiv 2012.11879.
    """

    def __init__(self, channels: int, frequencies: int = 16, size: int = 7, ratio: float = 16) -> None:
        super().__init__(
            channels, pool=f"dct(frequencies={frequencies}, size={size})", mix=f"mlp(ratio={ratio}, bias=False)"
        )

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("fcanet", cls(32, ratio=4)), Sample("fcanet(size=14)", cls(12, 3, 14, 4))]
